"""Sections: the base class of all groups of options, and the tolerant reading of their values.

A value with only one possible meaning is converted, and a note is made where this changed it: a single value or a
comma-separated string for a list, a number for a name, characters that copick replaces in names.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tomoscout.machine.errors import cut, shown
from tomoscout.options.names import Named, copick_name
from tomoscout.options.other_names import name_here

Fraction = Annotated[float, Field(ge=0, le=1)]
Size = Annotated[int, Field(ge=1, le=100_000)]
Precision = Literal["auto", "bf16", "fp16", "float32"]
"""Voxels along an axis."""


def expand_path(text: str) -> str:
    """The path with `~`, `$NAME` and `${NAME}` replaced by their values.

    Raises:
        ValueError: a variable is not set, or there is no such home folder.
    """
    for match in re.finditer(r"\$(?:(\w+)|\{([^}]*)\})", text):
        if (name := match[1] or match[2]) not in os.environ:
            raise ValueError(f"{shown(text)}: the environment has no variable {name}")
    text = os.path.expandvars(text)
    try:
        return str(Path(text).expanduser()) if text.startswith("~") else text
    except RuntimeError:
        raise ValueError(f"{shown(text)}: there is no such home folder") from None


FilePath = Annotated[str, Field(min_length=1), AfterValidator(expand_path)]
"""A file or folder; `~` and variables of the environment are replaced when the configuration is read."""


@dataclass(frozen=True)
class LeftOut:
    """Marks an option, within `Annotated`, that fingerprints leave out: changing it does not by itself make results out
    of date."""

    why: str


WHERE_IT_RUNS = LeftOut("it says where work is done, not what comes out")
HOW_MANY = LeftOut("it says of what there is a result, not what the result is")
IN_ANOTHER_FORM = LeftOut("what follows from it is in the digest")


@dataclass(frozen=True)
class NotSearched:
    """Marks an option, within `Annotated`, that an exploration does not search."""

    why: str


_Mark = TypeVar("_Mark", LeftOut, NotSearched)


class Note(NamedTuple):
    """A value that was converted: the section, or the path of the key; its key there; and the change."""

    section: type[Section] | str
    key: str
    text: str


_notes: ContextVar[list[Note] | None] = ContextVar("notes", default=None)


@contextmanager
def collected_notes() -> Iterator[list[Note]]:
    """Context that collects a note for every value converted while a configuration is read."""
    notes: list[Note] = []
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


def note_change(section: type[Section] | str, key: str, given: object, taken: object) -> None:
    """Note that a given value was converted."""
    if (notes := _notes.get()) is not None:
        notes.append(Note(section, key, f"{shown(given)} is taken as {shown(taken)}"))


class Section(BaseModel):
    """A group of options. Unknown keys are refused with a suggestion; values are read tolerantly."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

    @classmethod
    def marked(cls, mark: type[_Mark]) -> dict[str, _Mark]:
        """The options of this section that carry a mark, by name."""
        marks = ((name, entry) for name, field in cls.model_fields.items() for entry in field.metadata)
        return {name: entry for name, entry in marks if isinstance(entry, mark)}

    def decisive(self, keep: Collection[str] = (), leave_out: Collection[str] = ()) -> dict[str, Any]:
        """The values that results depend on, as JSON types: of all options but those marked `LeftOut`.

        Args:
            keep: marked options that are included all the same.
            leave_out: further options to leave out.
        """
        return self.model_dump(mode="json", exclude={*self.marked(LeftOut), *leave_out} - {*keep})

    @model_validator(mode="before")
    @classmethod
    def _read(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        fields = {field.alias or name: field for name, field in cls.model_fields.items()}
        own = cls._with_own_reader()
        taken = {}
        for key, value in values.items():
            name = next((name for name, field in cls.model_fields.items() if key in (name, field.alias)), None)
            if name is None:
                raise ValueError(f"unknown key '{cut(str(key))}'; {_hint(str(key), list(fields))}")
            field = cls.model_fields[name]
            taken[key] = value if name in own else as_meant(value, field.annotation, field.metadata)
            if taken[key] is not value:
                note_change(cls, str(key), value, taken[key])
        return taken

    @classmethod
    def _with_own_reader(cls) -> set[str]:
        """Names of fields with a `before` validator of their own, which reads their short forms."""
        validators = cls.__pydantic_decorators__.field_validators.values()
        return {name for entry in validators if entry.info.mode == "before" for name in entry.info.fields}


def _hint(key: str, known: list[str]) -> str:
    here = name_here(key)
    # Within `train.network` no advice points to `train.network`: not every family has all options of octopi's networks.
    if here and not ("family" in known and "train.network" in here):
        return f"in tomoscout: {here}"
    near = difflib.get_close_matches(key, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"


def as_meant(value: Any, kind: Any, metadata: Any = ()) -> Any:
    """The value converted to the expected kind where it can only mean that; otherwise the value itself, as the same
    object."""
    if get_origin(kind) is Annotated:
        return as_meant(value, get_args(kind)[0], kind.__metadata__)
    if any(isinstance(entry, BeforeValidator) for entry in metadata):
        return value
    origin = get_origin(kind) or kind
    if origin in (Union, UnionType):
        return _as_one_of(value, get_args(kind))
    if origin is dict and isinstance(value, dict):
        return _mapping_as_meant(value, *get_args(kind))
    if origin is list:
        return _list_as_meant(value, get_args(kind)[0], metadata)
    if origin is str:
        return _name_as_meant(value, next((entry for entry in metadata if isinstance(entry, Named)), None))
    # Booleans are integers in Python, and pydantic would accept them as numbers; it refuses text.
    return str(value).lower() if origin in (int, float) and isinstance(value, bool) else value


def _as_one_of(value: Any, kinds: tuple[Any, ...]) -> Any:
    """Convert a value of an option that takes several kinds: a single value becomes a list only if no other kind
    fits."""
    by_type = {_plain_type(kind): kind for kind in kinds}
    if isinstance(value, dict):
        wanted: list[Any] = [dict]
    elif isinstance(value, list | tuple):
        wanted = [list]
    elif isinstance(value, str) and Literal in by_type and value.isidentifier():
        return value
    else:
        wanted = [str, float, int, list]
    kind = next((by_type[kind] for kind in wanted if kind in by_type), None)
    return value if value is None or kind is None else as_meant(value, kind)


def _plain_type(kind: Any) -> Any:
    origin = get_origin(kind) or kind
    return _plain_type(get_args(kind)[0]) if origin is Annotated else origin


def _list_as_meant(value: Any, kind: Any, metadata: Any) -> Any:
    """A list from a comma-separated string or a single value. For a list of fixed length a single value is repeated."""
    if isinstance(value, str) and value.strip():
        parts = [part.strip() for part in value.strip("[]() ").split(",")]
        values: Any = parts if _plain_type(kind) is str else [_number(part) for part in parts]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        values = [value]
    else:
        values = value
    if not isinstance(values, list | tuple):
        return value
    if values is not value and len(values) == 1:
        values *= max((getattr(entry, "min_length", 1) for entry in metadata), default=1)
    meant = [as_meant(part, kind) for part in values]
    return values if all(one is other for one, other in zip(meant, values, strict=True)) else meant


def _number(text: str) -> Any:
    try:
        return int(text)
    except ValueError:
        return text


def _mapping_as_meant(value: dict[Any, Any], keys: Any, values: Any) -> dict[Any, Any]:
    meant = {as_meant(key, keys): as_meant(part, values) for key, part in value.items()}
    if len(meant) < len(value):
        raise ValueError(f"two of the keys {shown(list(value))} mean the same")
    same = all(
        pair[0] is other[0] and pair[1] is other[1] for pair, other in zip(meant.items(), value.items(), strict=True)
    )
    return value if same else meant


def _name_as_meant(value: Any, named: Named | None) -> Any:
    # Only plain integers: a number such as 007, or a boolean from yes or no, may be another name. pydantic refuses
    # those, as they are not text.
    if named and type(value) is int:
        return str(value)
    return copick_name(value) if named and named.by_copick and isinstance(value, str) else value
