"""Names of runs, objects and models, of kinds of tomogram, and of where picks come from: their rules, and how they are
read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field

from tomoscout.machine.errors import cut
from tomoscout.machine.files import digest


@dataclass(frozen=True)
class Named:
    """Marks text that is a name: a number stands for it. `by_copick`: copick's names, in which it replaces some
    characters."""

    by_copick: bool


# What copick replaces in names, so that one that holds it would not be found again, and what has a meaning in our own:
# commas and @ in sources, braces in Snakemake's paths.
_NOT_IN_NAMES = r"<>:\"/\\|?*\s_\x00-\x1f\x7f,@{}"
NAME_PATTERN = rf"^\.*[^.{_NOT_IN_NAMES}-]([^{_NOT_IN_NAMES}]*[^{_NOT_IN_NAMES}-])?$"
NAME_RULE = (
    'a name must hold no space, no underscore and none of < > : " / \\ | ? * , @ { }, begin and end with no hyphen, '
    "and be more than dots"
)
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=100), Named(by_copick=True)]
"""A name of ours, as copick takes it."""
ObjectName = Annotated[str, Field(min_length=1), Named(by_copick=True)]
"""The name of an object of a copick project."""
RunName = Annotated[str, Field(min_length=1), Named(by_copick=False)]
"""The name of a run, which may hold underscores, or `project/run`."""
ProjectName = Annotated[str, Field(pattern=r"^\.*[^/:\s.][^/:\s]*$"), Named(by_copick=False)]
"""What a configuration calls a project."""


def copick_name(text: str) -> str:
    """A name as copick writes it: with hyphens for underscores, spaces and colons, and none at its ends."""
    name = re.sub(r"[\s_:]", "-", text.strip()).strip("-")
    return text if name == text else name


class TomogramUri(NamedTuple):
    """A kind of tomogram: `algorithm@voxel spacing in Å`."""

    algorithm: str
    voxel_spacing: float

    @classmethod
    def parse(cls, text: str) -> TomogramUri:
        """Read `wbp@10.0`.

        Raises:
            ValueError: the text has another form.
        """
        match = re.fullmatch(r"([^@:\s]+)@(\d+\.?\d*|\.\d+)", text.strip())
        if not match:
            raise ValueError(f"'{cut(text)}' is not a tomogram URI; expected algorithm@spacing, such as wbp@10.0")
        if not 0 < float(match[2]) <= 10_000:
            raise ValueError(
                f"'{cut(text)}' has a spacing of {cut(match[2])} Å, expected more than 0 and at most 10,000"
            )
        return cls(match[1], float(match[2]))

    def __str__(self) -> str:
        return f"{self.algorithm}@{self.voxel_spacing}"


class Source(NamedTuple):
    """Where picks or a segmentation come from. `user` and `session` are None where any will do."""

    name: str
    user: str | None
    session: str | None

    @classmethod
    def parse(cls, text: str) -> Source:
        """Read `name`, `name:user/session` or the older `name,user,session`.

        Raises:
            ValueError: the text has another form.
        """
        match = re.fullmatch(r"([^:/,\s]+)(?:(?::([^:/,\s]+)/([^:/,\s]+))|(?:,([^:/,\s]+),([^:/,\s]+)))?", text.strip())
        if not match:
            raise ValueError(f"'{cut(text)}' is not a source; expected name, name:user/session or name,user,session")
        return cls(match[1], match[2] or match[4], match[3] or match[5])

    def __str__(self) -> str:
        return self.name if self.user is None else f"{self.name}:{self.user}/{self.session}"


def source_name(text: str) -> str:
    """A source with its names as copick writes them."""
    parts = re.split(r"\s*([:/,])\s*", text.strip())
    return "".join(part if part in tuple(":/,") else copick_name(part) for part in parts)


def names_octopi(path: str) -> bool:
    """Whether a path is that of octopi's configuration of a model, and not of a model folder."""
    return path.endswith((".yaml", ".yml")) and Path(path).name != "model.yaml"


def model_name(path: str) -> str:
    """What a model from elsewhere is called here: as its folder. Of octopi's models many lie in folders of one name and
    become model folders side by side, so that a part of a digest of the path tells them apart."""
    absolute = Path(path).absolute()
    folder = absolute.parent if absolute.suffix in (".yaml", ".yml") else absolute
    # Copick would replace what a name must not hold, and not find it again.
    name = re.sub(r"[^\w.-]|_", "-", folder.name).strip("-.") or "models"
    return f"{name}-{digest(path)[:6]}" if names_octopi(path) else name
