"""The search space: which options are searched, in which ranges, and under which conditions."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import yaml
from pydantic.fields import FieldInfo

from tomoscout.explore.options import Choice, Explore, Fixed, Number, Space, key_in, parse_entry
from tomoscout.learning.losses import LOSSES
from tomoscout.learning.options import Training
from tomoscout.machine.errors import TomoscoutError
from tomoscout.networks import family_module
from tomoscout.options.sections import NotSearched, Section


def searchable(options: type[Training]) -> dict[str, FieldInfo]:
    """The options of a training that a search may set, by name, such as `augmentation.rotate`."""
    left_out = options.marked(NotSearched)
    found: dict[str, FieldInfo] = {}
    groups: dict[str, Mapping[str, FieldInfo]] = {}
    for name, field in options.model_fields.items():
        if name == "loss":
            groups[name] = {option: entry for loss in LOSSES.values() for option, entry in loss.model_fields.items()}
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            groups[name] = field.annotation.model_fields
        elif name not in left_out:
            found[name] = field
    return found | {f"{group}.{name}": field for group, fields in groups.items() for name, field in fields.items()}


KNOWN = ("loss.name",)
"""Names that conditions may refer to even if they are not searched."""

Domain = Number | Choice | Fixed
Suggest = Callable[[str, Number | Choice], Any]


class Entry(NamedTuple):
    """An entry of the search space: its name, its domain, and its conditions (names of other entries and the values
    allowed)."""

    name: str
    domain: Domain
    when: dict[str, list[Any]]

    def values_to_check(self) -> list[Any]:
        """All its choices, or both ends of its range."""
        if isinstance(self.domain, Fixed):
            return [self.domain.value]
        return self.domain.choices if isinstance(self.domain, Choice) else [self.domain.at(end) for end in (0, 1)]

    def counts(self, values: Mapping[str, Any]) -> bool:
        """Whether its conditions hold for these values."""
        return all(name in values and values[name] in allowed for name, allowed in self.when.items())


@dataclass(frozen=True)
class SearchSpace:
    """Entries in the order in which their values are drawn: those that others depend on come first.

    Entries have the names of options of `train`. An option of a network is `{family}.{option}`, and the family itself
    is `network`.
    """

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, explore: Explore, options: type[Training]) -> SearchSpace:
        """The search space of a configuration: the built-in entries with the configured changes. `options`: the class
        of the training options.

        Raises:
            TomoscoutError: an entry cannot be searched, or a condition names an entry that does not exist.
        """
        # Sorted, as the order of the families must not matter: it may change on the way from the file to a job.
        families = sorted(explore.networks)
        entries = [Entry("network", Choice(choices=families) if len(families) > 1 else Fixed(value=families[0]), {})]
        for family in families:
            changes = explore.networks[family]
            built_in = getattr(family_module(family), "SPACE", {})
            fields = family_module(family).Options.model_fields
            place = key_in(explore.SECTION, f"explore.networks.{family}")
            merged = list(_merge(built_in, changes, {"network": [family]}, fields, place))
            entries += _of_family(family, merged, place)
        known = searchable(options)
        for name in explore.space:
            _check_name(name, options, known, explore.SECTION)
        entries += _merge(options.SPACE, explore.space, {}, known, key_in(explore.SECTION, "explore.space"))
        return cls(tuple(_in_order(entries, key_in(explore.SECTION, "explore"))))

    @classmethod
    def parse(cls, values: Sequence[Mapping[str, Any]]) -> SearchSpace:
        """The search space in study.json."""
        return cls(tuple(Entry(entry["name"], parse_entry(entry["domain"]), entry["when"]) for entry in values))

    def to_json(self) -> list[dict[str, Any]]:
        """The search space as plain data."""
        return [
            {"name": e.name, "domain": e.domain.model_dump(exclude={"when"}, exclude_defaults=True), "when": e.when}
            for e in self.entries
        ]

    @property
    def searched(self) -> list[tuple[str, Number | Choice]]:
        """Names and domains of the entries that are not fixed."""
        return [(entry.name, entry.domain) for entry in self.entries if not isinstance(entry.domain, Fixed)]

    def values(self, suggest: Suggest, known: Mapping[str, Any]) -> dict[str, Any]:
        """Draw a value for every entry whose conditions hold. `known`: values that conditions may refer to besides
        those of entries."""
        found: dict[str, Any] = {}
        for entry in self.entries:
            if entry.counts({**known, **found}):
                domain = entry.domain
                found[entry.name] = domain.value if isinstance(domain, Fixed) else suggest(entry.name, domain)
        return found


def _merge(
    built_in: Mapping[str, Any],
    changes: Space,
    when: Mapping[str, list[Any]],
    fields: Mapping[str, FieldInfo],
    place: str,
) -> Iterator[Entry]:
    """The built-in entries with the changes to them. An entry keeps its conditions unless the change has others.
    `fields`: the options that the entries set. `place`: where the changes are, for messages."""
    for name in dict.fromkeys([*built_in, *sorted(changes)]):
        default: Domain | None = parse_entry(built_in.get(name))
        entry: Domain | None = parse_entry(changes.get(name, default))
        if entry is None:
            continue
        conditions = entry.when or (default.when if default else {})
        if isinstance(entry, Number):
            field = fields.get(name, fields.get(name.partition(".")[0]))
            try:
                entry = entry.suited(_takes_fractions(field.annotation) if field else None)
            except ValueError as error:
                raise TomoscoutError(f"{place}.{name}: {error}") from None
        yield Entry(name, entry.model_copy(update={"when": {}}), {**when, **conditions})


def _takes_fractions(annotation: Any) -> bool:
    parts = get_args(annotation)
    return any(map(_takes_fractions, parts)) if parts else annotation is float


def _of_family(family: str, entries: Sequence[Entry], place: str) -> Iterator[Entry]:
    """The entries of a network family with full names, `{family}.{option}`, also in their conditions. `place`: where
    the changes to them are, for messages."""
    module = family_module(family)
    own = {entry.name for entry in entries}
    known = {**getattr(module, "SPACE", {}), **module.Options.model_fields}
    for name, domain, when in entries:
        if name not in known or name == "family":
            raise TomoscoutError(f"{place}.{name}: no option of {family}; {_nearest(name, known)}")
        yield Entry(f"{family}.{name}", domain, {f"{family}.{n}" if n in own else n: v for n, v in when.items()})


def _check_name(name: str, options: type[Training], known: Mapping[str, FieldInfo], section: str) -> None:
    top, place = name.partition(".")[0], key_in(section, f"explore.space.{name}")
    if reason := options.marked(NotSearched).get(top):
        raise TomoscoutError(f"{place}: not to be searched: {reason.why}")
    field = known.get(top)
    if name in known or (field and isinstance(field.default, dict)):
        return
    near = [option for option in known if option.startswith(f"{top}.")] or known
    raise TomoscoutError(f"{place}: no option of {key_in(section, 'train')}; {_nearest(name, near)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"


def _in_order(entries: Sequence[Entry], place: str) -> Iterator[Entry]:
    """The entries in topological order: each after those that its conditions name. `place`: the key of the section, for
    messages."""
    names = {entry.name for entry in entries}
    for dependent, name in ((entry.name, name) for entry in entries for name in entry.when):
        if name not in names and name not in KNOWN:
            hint = _nearest(name, sorted(names))
            raise TomoscoutError(f"{place}: the condition of {dependent} names {name}, which is no entry; {hint}")
    waiting, placed = list(entries), set[str]()
    while waiting:
        ready = next((e for e in waiting if all(name in placed or name not in names for name in e.when)), None)
        if ready is None:
            raise TomoscoutError(f"{place}.space: {waiting[0].name} depends on itself: {', '.join(waiting[0].when)}")
        waiting.remove(ready)
        placed.add(ready.name)
        yield ready


def label(value: Any) -> Any:
    """A value of a choice in a type that Optuna takes: a list becomes JSON text."""
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)


def describe_space(space: SearchSpace, explore: Explore, options: type[Training]) -> str:
    """The search space as YAML: the section of a configuration that gives the same space."""
    families = list(explore.networks)

    def part(entries: Iterable[Entry], prefix: str, built_in: Iterable[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for entry in entries:
            domain = entry.domain.model_dump(exclude={"when"}, exclude_defaults=True)
            when = {name: allowed for name, allowed in entry.when.items() if not (prefix and name == "network")}
            plain = isinstance(entry.domain, Fixed) and not when and not isinstance(domain["value"], dict | None)
            found[entry.name.removeprefix(prefix)] = (
                domain["value"] if plain else domain | ({"when": when} if when else {})
            )
        return found | {name: None for name in built_in if name not in found}

    def of_family(entry: Entry) -> str | None:
        return next((family for family in families if entry.name.startswith(f"{family}.")), None)

    networks = {
        family: part(
            (entry for entry in space.entries if of_family(entry) == family),
            f"{family}.",
            getattr(family_module(family), "SPACE", {}),
        )
        for family in families
    }
    rest = part((e for e in space.entries if e.name != "network" and of_family(e) is None), "", options.SPACE)
    section = {"explore": {"networks": networks, "space": rest}}
    values = {explore.SECTION: section} if explore.SECTION else section
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None)
