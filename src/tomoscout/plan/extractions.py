"""Extractions: what each reads and writes, in which order they are made, and in which runs. Uses only the inventory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

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
    """The runs in which each extraction works: those that have all that it reads, or will have it. In the order of
    `ordered`.

    Raises:
        TomoscoutError: as `ordered`, or an extraction has no run.
    """
    config, found = plan.config, dict[str, list["RunRecord"]]()
    excluded = excluded_runs(config, plan.records)
    there = [record for record in plan.records if record.key not in excluded]
    for name in ordered(config):
        made = {written_by(config, other): {record.key for record in found[other]} for other in found}
        if (owner := predictions(config)) is not None and any(r.owner == owner for r in reads_of(config, name)):
            made[owner] = {record.key for record in plan.localized}
        options: dict[str, list[Read]] = {}
        for read in reads_of(config, name):
            options.setdefault(read.option, []).append(read)
        chosen = there
        for option, reads in options.items():
            # Of several sources of picks a run needs one.
            chosen = [record for record in chosen if any(_has(record, read, made) for read in reads)]
            if not chosen:
                raise TomoscoutError(f"{option}: no run has {', '.join(map(str, reads))}")
        found[name] = chosen
    return found


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
    return {
        name: value
        for name, (source, value) in sources.items()
        if _owner(source) == read.owner and (read.names is None or source.name in read.names)
    }


def foreign(config: Config, reads: Iterable[Read]) -> list[Read]:
    """What is read that is not made by this workflow."""
    own = {written_by(config, name) for name in config.extract} | {predictions(config)}
    return [read for read in reads if read.owner not in own]
