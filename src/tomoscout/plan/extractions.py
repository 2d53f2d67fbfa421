"""Extractions: what each reads and writes, in which order they are made, and in which runs. Uses only the inventory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from tomoscout.data.inventory import find_runs
from tomoscout.machine.errors import TomoscoutError
from tomoscout.options.names import Source
from tomoscout.plan.runs import excluded_runs

if TYPE_CHECKING:
    from tomoscout.data.inventory import RunRecord
    from tomoscout.options.config import Config
    from tomoscout.plan.plan import Plan


class Owner(NamedTuple):
    """The user and session of what is read or written."""

    user: str
    session: str

    def __str__(self) -> str:
        return f"{self.user}/{self.session}"


class Read(NamedTuple):
    """What an option reads: picks, or a segmentation, of an owner. `names`: those of the objects, or of the
    segmentation; None for all objects."""

    option: str
    what: Literal["picks", "segmentation"]
    owner: Owner
    names: tuple[str, ...] | None

    def takes(self, source: Source) -> bool:
        """Whether picks or a segmentation of a source are read."""
        return _owner(source) == self.owner and (self.names is None or source.name in self.names)

    def __str__(self) -> str:
        return f"{self.owner}" if self.names is None else ", ".join(f"{name}:{self.owner}" for name in self.names)


def written_by(config: Config, name: str) -> Owner:
    """The owner of what an extraction writes."""
    options = config.extract[name]
    return Owner(options.user or config.localize.user, options.session or name)


def predictions(config: Config) -> Owner | None:
    """The owner of the predictions that this workflow makes; None if it makes none."""
    makes = config.learns or config.segment.models is not None or config.localize.segmentation is not None
    return Owner(config.localize.user, config.session) if makes else None


def chosen_picks(config: Config, name: str) -> str | list[str]:
    """The picks that an extraction chooses from, as `picks` of its options.

    Raises:
        TomoscoutError: none are given, and this workflow makes none.
    """
    if (picks := config.extract[name].picks) is not None:
        return picks
    if (owner := predictions(config)) is None:
        raise TomoscoutError(f"extract.{name}.picks: not given, and nothing is localised here")
    return str(owner)


def reads_of(config: Config, name: str) -> list[Read]:
    """All that an extraction reads. A list of picks has an entry for each owner."""
    options = config.extract[name]
    reads: list[Read] = []
    if options.needs_picks:
        reads += picks_read(f"extract.{name}.picks", chosen_picks(config, name))
    if options.partners is not None:
        reads += picks_read(f"extract.{name}.partners", options.partners)
    if options.segmentation is not None:
        reads.append(segmentation_read(f"extract.{name}.segmentation", options.segmentation))
    return reads


def segmentation_read(option: str, segmentation: str) -> Read:
    """What an option reads that names a segmentation, `name:user/session`."""
    source = Source.parse(segmentation)
    return Read(option, "segmentation", _owner(source), (source.name,))


def picks_read(option: str, picks: str | list[str]) -> Iterator[Read]:
    """What an option reads that names picks: `user/session`, or a list of `name:user/session`."""
    if isinstance(picks, str):
        yield Read(option, "picks", Owner(*picks.split("/")), None)
        return
    by_owner: dict[Owner, list[str]] = {}
    for source in map(Source.parse, picks):
        by_owner.setdefault(_owner(source), []).append(source.name)
    for owner, names in by_owner.items():
        yield Read(option, "picks", owner, tuple(names))


def _owner(source: Source) -> Owner:
    return Owner(source.user or "", source.session or "")


def ordered(config: Config) -> list[str]:
    """The extractions, each after those whose results it reads.

    Raises:
        TomoscoutError: two write with one user and session, or one of them reads what it makes itself.
    """
    makers: dict[Owner, str] = {}
    for name in config.extract:
        owner = written_by(config, name)
        other = "localize" if owner == predictions(config) else makers.setdefault(owner, name)
        if other != name:
            raise TomoscoutError(f"extract.{name}.session: {owner} is that of {other}; choose another")
    order: list[str] = []

    def add(name: str, before: tuple[str, ...]) -> None:
        if name in before:
            raise TomoscoutError(f"extract.{name}: reads what it makes itself, {' from '.join((*before, name))}")
        for read in reads_of(config, name):
            if read.owner in makers:
                add(makers[read.owner], (*before, name))
        if name not in order:
            order.append(name)

    for name in config.extract:
        add(name, ())
    return order


def extracted_runs(plan: Plan) -> dict[str, list[RunRecord]]:
    """The runs in which each extraction works: those that have all that it reads, or will have it; of several sources
    of picks one. In the order of `ordered`.

    Raises:
        TomoscoutError: as `ordered`, an extraction has no run, or one of its `runs` lacks what it reads.
    """
    config, found = plan.config, dict[str, list["RunRecord"]]()
    for name in ordered(config):
        wanted = config.extract[name].runs
        chosen = list(plan.records) if wanted is None else find_runs(list(plan.records), wanted, f"extract.{name}.runs")
        options: dict[str, list[Read]] = {}
        for read in reads_of(config, name):
            options.setdefault(read.option, []).append(read)
        for option, reads in options.items():
            having = {record.key for record in _runs_that_have(plan, reads, found)}
            what = ", ".join(map(str, reads))
            if wanted is not None and (lacking := [record.key for record in chosen if record.key not in having]):
                raise TomoscoutError(f"extract.{name}.runs: {lacking[0]} has no {what}, or split.exclude leaves it out")
            chosen = [record for record in chosen if record.key in having]
            if not chosen:
                raise TomoscoutError(f"{option}: no run has {what}")
        found[name] = chosen
    return found


def runs_that_have(plan: Plan, reads: Sequence[Read]) -> list[RunRecord]:
    """The runs that are not excluded and have some of what is read, or will have it.

    Raises:
        TomoscoutError: as `extracted_runs`, where an extraction makes what is read.
    """
    makes = any(written_by(plan.config, name) == read.owner for name in plan.config.extract for read in reads)
    return _runs_that_have(plan, reads, plan.extracted if makes else {})


def _runs_that_have(plan: Plan, reads: Sequence[Read], extracted: Mapping[str, Sequence[RunRecord]]) -> list[RunRecord]:
    config, excluded = plan.config, excluded_runs(plan.config, plan.records)
    made = {written_by(config, name): {record.key for record in records} for name, records in extracted.items()}
    if (owner := predictions(config)) is not None and any(read.owner == owner for read in reads):
        made[owner] = {record.key for record in plan.localized}
    return [r for r in plan.records if r.key not in excluded and any(_has(r, read, made) for read in reads)]


def _has(record: RunRecord, read: Read, made: dict[Owner, set[str]]) -> bool:
    """Whether a run has what is read, or will have it. `made`: owner of what this workflow makes → its runs."""
    return record.key in made.get(read.owner, ()) or bool(contents(record, read))


def contents(record: RunRecord, read: Read) -> dict[str, str]:
    """What is read, by name, with the digests of the inventory."""
    if read.what == "segmentation":
        sources = {uri: (Source.parse(uri.partition("@")[0]), value) for uri, value in record.segmentations.items()}
    else:
        sources = {str(source): (source, count.digest) for source, count in record.picks.items()}
        # Picks that cannot be read are there, too: the job says what is wrong with them.
        broken = (name for name in record.unreadable if "@" not in name and ":" in name)
        sources |= {name: (Source.parse(name), "") for name in broken}
    return {name: value for name, (source, value) in sources.items() if read.takes(source)}


def foreign(config: Config, reads: Iterable[Read]) -> list[Read]:
    """What is read that is not made by this workflow."""
    own = {written_by(config, name) for name in config.extract} | {predictions(config)}
    return [read for read in reads if read.owner not in own]
