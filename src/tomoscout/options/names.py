"""Names of runs, objects and models, URIs of tomograms, and sources of picks: their rules, and how they are parsed."""

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
    """Marks text that is a name, for which a number is also accepted. `by_copick`: whether copick replaces some
    characters in it."""

    by_copick: bool


# Characters that copick replaces in names, so that a name with one of them would not be found again, and characters
# with a meaning here: commas and @ in sources, braces in Snakemake's paths.
_NOT_IN_NAMES = r"<>:\"/\\|?*\s_\x00-\x1f\x7f,@{}"
NAME_PATTERN = rf"^\.*[^.{_NOT_IN_NAMES}-]([^{_NOT_IN_NAMES}]*[^{_NOT_IN_NAMES}-])?$"
NAME_RULE = (
    'a name must hold no space, no underscore and none of < > : " / \\ | ? * , @ { }, begin and end with no hyphen, '
    "and be more than dots"
)
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=100), Named(by_copick=True)]
"""A name given by the user that copick does not change."""
ObjectName = Annotated[str, Field(min_length=1), Named(by_copick=True)]
"""The name of an object of a copick project."""
RunName = Annotated[str, Field(min_length=1), Named(by_copick=False)]
"""The name of a run, which may hold underscores, or `project/run`."""
ProjectName = Annotated[str, Field(pattern=r"^\.*[^/:\s.][^/:\s]*$"), Named(by_copick=False)]
"""The name of a project in the configuration."""


def copick_name(text: str) -> str:
    """A name as copick writes it: with hyphens for underscores, spaces and colons, and none at its ends."""
    name = re.sub(r"[\s_:]", "-", text.strip()).strip("-")
    return text if name == text else name


class TomogramUri(NamedTuple):
    """The URI of a kind of tomogram: `algorithm@voxel spacing in Å`."""

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
    """The source of picks or of a segmentation. `user` and `session` are None if any is accepted."""

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
    """Whether a path is that of octopi's configuration of a model, not of a model folder."""
    return path.endswith((".yaml", ".yml")) and Path(path).name != "model.yaml"


def model_name(path: str) -> str:
    """The name of a model given by its path: that of its folder. Folders of octopi models often have the same name, so
    part of a digest of the path is appended for them."""
    absolute = Path(path).absolute()
    folder = absolute.parent if absolute.suffix in (".yaml", ".yml") else absolute
    # Characters are replaced as copick would replace them; otherwise it would not find the name again.
    name = re.sub(r"[^\w.-]|_", "-", folder.name).strip("-.") or "models"
    return f"{name}-{digest(path)[:6]}" if names_octopi(path) else name
