"""Formats of picks of other programs, a file each, and `FORMATS`, which lists them. A format imports its libraries
where it reads or writes: configurations are read where nothing slow may be imported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tomoscout.data.formats.base import Format
from tomoscout.data.formats.copick_csv import CopickCsv
from tomoscout.data.formats.czii import Czii
from tomoscout.data.formats.dynamo import Dynamo
from tomoscout.data.formats.eman2 import Eman2
from tomoscout.data.formats.imod import Imod
from tomoscout.data.formats.motivelist import MotiveList
from tomoscout.data.formats.ndjson import Ndjson
from tomoscout.data.formats.relion3 import Relion3
from tomoscout.data.formats.relion4 import Relion4
from tomoscout.data.formats.relion5 import Relion5
from tomoscout.data.formats.warp import Warp
from tomoscout.machine.errors import TomoscoutError

FORMATS: dict[str, Format] = {
    "relion5": Relion5(),
    "relion4": Relion4(),
    "relion3": Relion3(),
    "warp": Warp(),
    "dynamo": Dynamo(),
    "em": MotiveList(),
    "csv": CopickCsv(),
    "czii": Czii(),
    "imod": Imod(),
    "eman2": Eman2(),
    "ndjson": Ndjson(),
}
"""Formats by name."""

if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[tuple(FORMATS)]


def format_of(path: Path) -> Format:
    """The format of a file by the ending of its name. STAR files and tables of text are told apart when they are read.

    Raises:
        TomoscoutError: no format has such an ending.
    """
    name = re.sub(r"\.tsv$", ".csv", path.name.lower())
    found = next((kind for kind in FORMATS.values() if name.endswith(kind.suffix)), None)
    if found is None:
        endings = ", ".join(dict.fromkeys(kind.suffix for kind in FORMATS.values()))
        raise TomoscoutError(f"{path}: its ending tells no format of picks; expected {endings}, or give `format`")
    return found
