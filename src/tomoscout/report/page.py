"""The report page: one self-contained HTML file."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tomoscout.machine.files import write_text
from tomoscout.report.colours import Colour
from tomoscout.report.dataset import Dataset
from tomoscout.report.figures import Figure, chart_style, drawing, write_figures
from tomoscout.report.found import Found, score_charts
from tomoscout.report.learning_curve import Curve, curve_chart
from tomoscout.report.marks import icon
from tomoscout.report.origin import Origin
from tomoscout.report.pictures import MarkedSlice, Pictures, SlicePicture
from tomoscout.report.plots import Chart, history_charts, precision_recall_charts
from tomoscout.report.segmented import RunLabels, volumes
from tomoscout.report.usage import Usage
from tomoscout.report.viewers import OpenProject
from tomoscout.report.worst import Worst
from tomoscout.tasks.picking.intervals import LEVEL
from tomoscout.tasks.picking.score_columns import PAGE_COLUMNS, f_name, shown_columns
from tomoscout.tasks.picking.score_tables import between, describe_runs, fixed, measured

_OF_ORIGIN = ("weights", "made_with")
"""What is said of a model where it is said what the results were made with."""


_NONE = Pictures([], [])
PARTS = {"train": "Training", "validate": "Validation", "test": "Test"}


def write_report(
    path: Path,
    title: str,
    scores: Mapping[str, Any] | None,
    history: Sequence[Mapping[str, Any]],
    model: Mapping[str, Any],
    split: Mapping[str, Any],
    targets: Sequence[Mapping[str, Any]],
    picks: Pictures = _NONE,
    found: Found | None = None,
    *,
    worst: Sequence[Worst] = (),
    labels: Mapping[str, RunLabels] | None = None,
    dataset: Dataset | None = None,
    checks: Pictures = _NONE,
    curve: Curve | None = None,
    usage: Sequence[Usage] = (),
    viewers: Sequence[OpenProject] = (),
    origin: Origin | None = None,
) -> None:
    """Write the report page and, in a folder with its name beside it, its figures.

    Args:
        path: the HTML file.
        title: its heading.
        scores: what `evaluate` returned, or None if nothing was scored.
        history: the rows of metrics.csv (`step`, `loss`, `score`; empty values where a row has none).
        model: the content of model.yaml, or other nested facts.
        split: the content of the split file; `fold` is the number of the fold that was used, 0 by default.
        targets: what `summarise_targets` returned; may be empty.
        picks: slices with the scored picks or, without scores, with all picks and labels.
        found: the picks of a model trained elsewhere, scored or not.
        worst: cut-outs of false picks and of missed references.
        labels: what is segmented in the first runs, where nothing is scored.
        dataset: what there is to learn from or to apply a model to.
        checks: targets over tomograms.
        curve: scores over the number of training runs.
        usage: time and memory of the stages.
        viewers: how to open the runs.
        origin: what the results were made with.
    """
    charts = {
        "precision-recall": precision_recall_charts(scores) if scores else [],
        "training": history_charts(history),
        "scores": score_charts(found) if found else [],
        "learning-curve": [curve_chart(curve.rows)] if curve else [],
    }
    cut_outs = [picture for entry in worst for picture in entry.pictures]
    pictures = {
        "picks": picks.pictures,
        "worst": cut_outs,
        "targets": checks.pictures,
        "tomograms": dataset.thumbnails if dataset else [],
    }
    write_figures(path.with_suffix(""), _figures(charts, pictures))
    page = environment().get_template("page.html.jinja")
    sets = [scores, *scores["also"]] if scores else []
    rows = [row for each in sets for row in each["objects"]]
    fold = split["folds"][split.get("fold", 0)] if split.get("folds") else {}
    write_text(
        path,
        page.render(
            title=title,
            scores=scores,
            f=f_name(scores["beta"]) if scores else None,
            columns=shown_columns(scores["objects"], PAGE_COLUMNS) if scores else [],
            errors=[column for column in shown_columns(rows, PAGE_COLUMNS) if column.unit],
            sets=sets,
            level=LEVEL,
            sentences=describe_runs(scores) if scores else [],
            curves=charts["precision-recall"],
            history=charts["training"],
            facts=flatten({key: value for key, value in model.items() if not (origin and key in _OF_ORIGIN)}),
            tables=tables(model),
            parts=[(name, fold[part]) for part, name in PARTS.items() if part in fold],
            excluded=by_reason(split.get("excluded", {})),
            targets=targets,
            picks=picks,
            worst=worst,
            volumes=volumes(labels.values()) if labels else [],
            labelled=labels or {},
            segmentations=sorted({str(entry.segmentation) for entry in (labels or {}).values()}),
            found=found,
            found_charts=charts["scores"],
            curve=curve,
            curve_charts=charts["learning-curve"],
            dataset=dataset,
            checks=checks,
            usage=usage,
            viewers=viewers,
            origin=origin,
        ),
    )


def _figures(charts: Mapping[str, Iterable[Chart]], pictures: Mapping[str, Iterable[SlicePicture]]) -> list[Figure]:
    drawn, style = environment(), chart_style()
    figures = [
        Figure(kind, chart.title, drawing(drawn, "chart.svg.jinja", chart, style))
        for kind, some in charts.items()
        for chart in some
    ]
    # What a caption says in brackets would make a name too long.
    return figures + [
        Figure(kind, picture.caption.partition(" (")[0], _content(drawn, picture, style))
        for kind, some in pictures.items()
        for picture in some
    ]


def _content(drawn: Any, picture: SlicePicture, style: str) -> bytes:
    is_marked = isinstance(picture, MarkedSlice)
    return drawing(drawn, "marked.svg.jinja", picture, style) if is_marked else picture.png


def environment(*rooms: str) -> Any:
    """Jinja's environment with the templates of this package, and of others such as `explore`."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(f"tomoscout.{room}", "") for room in ("report", *rooms)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"fixed": fixed, "measured": measured, "between": between, "count": _count, "data": _data}
    environment.filters |= {"time": _time, "memory": _memory, "css": _css, "icon": icon}
    return environment


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _time(seconds: float | None) -> str:
    """A time as text, such as 4.2 s, 3 min 05 s or 2 h 40 min."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def _memory(megabytes: float | None) -> str:
    if megabytes is None:
        return "–"
    return f"{megabytes:.0f} MB" if megabytes < 1000 else f"{megabytes / 1024:.1f} GB"


def _css(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def by_reason(excluded: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """Reason → the runs (`project/run`) that were left out for it."""
    reasons: dict[str, list[str]] = {}
    for run, reason in sorted(excluded.items()):
        reasons.setdefault(reason, []).append(run)
    return sorted(reasons.items())


def flatten(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested facts as lines, such as `network · channels` and `16, 32, 64`. Lists of mappings are left to `tables`."""
    lines: list[tuple[str, str]] = []
    for key, value in facts.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            lines += flatten(value, f"{name} · ")
        elif not _is_table(value):
            lines.append((name, _plain(value)))
    return lines


def tables(facts: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Facts that are lists of mappings: name, columns and rows of each."""
    found = []
    for key, value in facts.items():
        if _is_table(value):
            columns = list(dict.fromkeys(column for entry in value for column in entry))
            rows = [[_plain(entry.get(column)) for column in columns] for entry in value]
            found.append((key.replace("_", " "), [column.replace("_", " ") for column in columns], rows))
    return found


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, Mapping) for entry in value)


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def summarise_targets(manifests: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Sum the targets in the manifests of several runs by class, separately for each voxel spacing.

    Returns:
        For each segmentation its name (`segmentation`), `runs` (how many have it), and `classes`: name, label, radius
        and target_radius in Å (None for a segmentation), sources, voxels; for particles picks used, outside and
        overlapping, for segmentations the voxels lost to particles (None where they do not apply).
    """
    by_segmentation: dict[str, list[Mapping[str, Any]]] = {}
    for manifest in manifests:
        for target in manifest["targets"]:
            by_segmentation.setdefault(target["segmentation"], []).append(target)
    return [
        {"segmentation": name, "runs": len(targets), "classes": _add_up(targets)}
        for name, targets in by_segmentation.items()
    ]


def _add_up(targets: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    classes: dict[str, dict[str, Any]] = {}
    for entry in (entry for target in targets for entry in target["classes"]):
        total = classes.setdefault(
            entry["name"], {key: entry[key] for key in ("name", "label", "radius", "target_radius", "sources")}
        )
        picks = entry.get("picks", {})
        counts = {
            "voxels": entry["voxels"],
            "used": picks.get("used"),
            "outside": picks.get("outside"),
            "overlapping": picks.get("overlapping"),
            "lost": entry.get("voxels_lost_to_particles"),
        }
        for key, value in counts.items():
            total[key] = value if value is None else total.get(key, 0) + value
    return sorted(classes.values(), key=lambda entry: entry["label"])
