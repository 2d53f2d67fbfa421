"""The stage of the learning curve: the scores of models that were trained on fewer and on all training runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from tomoscout.data.inventory import RunRecord
from tomoscout.machine.files import write_bytes, write_json, write_table
from tomoscout.plan.annotations import count_picks
from tomoscout.plan.classes import TargetClass
from tomoscout.plan.members import Member
from tomoscout.plan.plan import Plan
from tomoscout.report.figures import chart_style, drawing
from tomoscout.report.learning_curve import ALL, Curve, CurveRow, curve_chart, describe_last_step
from tomoscout.report.page import environment
from tomoscout.stages.compare_folds import format_summary, read_results


def run_learning_curve(plan: Plan, output: Path) -> None:
    """Write the table of the learning curve to `output` (.csv) and, beside it, its figure (.svg) and its rows with what
    they show (.json); print the table and what it shows.

    Raises:
        TomoscoutError: a model of the curve has no results, or its models were selected by different scores.
    """
    members = plan.curve
    results = read_results([plan.model_of(member) for member in members])
    rows = curve_rows(plan, dict(zip(members, results, strict=True)))
    sentences = [describe_last_step(rows), *_left_out(plan)]
    table = [_columns(row) for row in rows]
    write_table(output, list(table[0]), table)
    figure = drawing(environment(), "chart.svg.jinja", curve_chart(rows), chart_style())
    write_bytes(output.with_suffix(".svg"), figure)
    curve = Curve(plan.fingerprint("learning_curve"), results[0]["metric"], sentences, rows)
    write_json(output.with_suffix(".json"), asdict(curve))
    print(format_summary(table) + "\n".join(["", *sentences]))


def curve_rows(plan: Plan, results: Mapping[Member, Mapping[str, Any]]) -> list[CurveRow]:
    """For every number of runs a row `all`, for the score that selected the models, and one per class. `results`: those
    of the trainings of the curve, in its order."""
    rows = []
    classes = plan.targets.classes
    for percent, group in groupby(results, lambda member: member.percent):
        members = list(group)
        drawn = [[plan.by_key[key] for key in plan.runs_of(member).train] for member in members]
        found = [results[member] for member in members]
        runs = len(drawn[0])
        rows.append(CurveRow(percent, runs, ALL, _picks(classes, drawn), [result["score"] for result in found]))
        for entry in classes:
            scores = [result["scores"].get(entry.name) for result in found]
            rows.append(CurveRow(percent, runs, entry.name, _picks([entry], drawn), scores))
    return rows


def _picks(classes: Sequence[TargetClass], drawn: Sequence[Sequence[RunRecord]]) -> int | None:
    """The annotated picks of the particles among classes, the mean over the draws."""
    particles = [entry for entry in classes if entry.is_particle]
    counts = [sum(count_picks(entry, record) for entry in particles for record in records) for records in drawn]
    return round(fmean(counts)) if particles else None


def _columns(row: CurveRow) -> dict[str, Any]:
    """A row of the table."""
    return {
        "percent": row.percent,
        "runs": row.runs,
        "object": row.object,
        "picks": row.picks,
        "draws": len(row.known),
        "mean": row.mean,
        "spread": row.spread,
        **{f"draw {number}": score for number, score in enumerate(row.scores)},
    }


def _left_out(plan: Plan) -> list[str]:
    """A sentence on the fractions that are no more runs than others."""
    trained = {member.percent for member in plan.curve}
    others = [f"{percent} %" for percent in plan.config.learning_curve.percents if percent not in trained]
    return [f"Not trained, being as many runs as a larger fraction: {', '.join(others)}."] if others else []
