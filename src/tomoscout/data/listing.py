"""The content of projects, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tomoscout.data.inventory import RunRecord
from tomoscout.machine.messages import times
from tomoscout.machine.tables import aligned

RUNS_SHOWN = 30


def list_projects(records: Sequence[RunRecord], shown: int | None = RUNS_SHOWN) -> str:
    """For each project: its tomograms, picks and segmentations with the number of runs that have them, and the content
    of the first `shown` runs (None: of all)."""
    by_project: dict[str, list[RunRecord]] = {}
    for record in records:
        by_project.setdefault(record.project, []).append(record)
    parts = [_list_project(name, runs, shown) for name, runs in by_project.items()]
    return "\n\n".join(parts) + "\n"


def _list_project(name: str, records: Sequence[RunRecord], shown: int | None) -> str:
    blocks = [
        [f"{name}: {len(records)} runs"],
        _table(["tomogram", "runs", "voxels (z, y, x)"], _tomograms(records)),
        _table(["picks", "runs", "empty", "picks in all"], _picks(records)),
        _table(["segmentation", "runs"], _segmentations(records)),
        _runs(records, shown),
        [f"cannot be used: {r.key}: {what}: {why}" for r in records for what, why in r.unreadable.items()],
        [f"doubtful: {r.key}: {what}: {why}" for r in records for what, why in r.doubtful.items()],
    ]
    return "\n\n".join("\n".join(lines) for lines in blocks if lines)


def _table(header: list[str], rows: Iterable[list[str]]) -> list[str]:
    lines = aligned([header, *rows])
    return [] if len(lines) == 1 else lines


def _tomograms(records: Sequence[RunRecord]) -> list[list[str]]:
    rows = []
    for uri in sorted({uri for record in records for uri in record.tomograms}):
        shapes = [record.tomograms[uri] for record in records if uri in record.tomograms]
        sizes = [times(shape) for shape in dict.fromkeys(shapes)]
        more = f" and {len(sizes) - 2} other sizes" if len(sizes) > 2 else ""
        rows.append([uri, str(len(shapes)), ", ".join(sizes[:2]) + more])
    return rows


def _picks(records: Sequence[RunRecord]) -> list[list[str]]:
    rows = []
    for source in sorted({source for record in records for source in record.picks}):
        counts = [record.picks[source].total for record in records if source in record.picks]
        rows.append([str(source), *map(str, (len(counts), counts.count(0), sum(counts)))])
    return rows


def _segmentations(records: Sequence[RunRecord]) -> list[list[str]]:
    uris = sorted({uri for record in records for uri in record.segmentations})
    return [[uri, str(sum(uri in record.segmentations for record in records))] for uri in uris]


def _runs(records: Sequence[RunRecord], shown: int | None) -> list[str]:
    rows = []
    for record in records[:shown]:
        by_session: dict[str, list[str]] = {}
        for source, found in record.picks.items():
            by_session.setdefault(f"{source.user}/{source.session}", []).append(f"{source.name} {found.total}")
        picks = "; ".join(f"{session}: {', '.join(names)}" for session, names in by_session.items())
        rows.append([record.run, ", ".join(record.tomograms) or "–", picks or "–"])
    lines = _table(["run", "tomograms", "picks"], rows)
    if len(records) > len(rows):
        lines.append(f"… and {len(records) - len(rows)} more runs (--runs shows all)")
    return lines
