"""The HTML report of a study: one self-contained file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tomoscout.explore.axes import Axis, short
from tomoscout.explore.charts import (
    best_of,
    curves_chart,
    history_chart,
    in_order,
    score_range,
    slice_charts,
)
from tomoscout.explore.importance import LEAST_TRIALS, SHUFFLES, best_count, importances
from tomoscout.explore.parallel import SHADES, Parallel, parallel_chart
from tomoscout.explore.records import BASELINE, BY_PRUNER, Ask, Params, Result, trial_name
from tomoscout.machine.files import write_text
from tomoscout.report.figures import Figure, chart_style, drawing, write_figures
from tomoscout.report.page import by_reason, environment, flatten

_SHOWN = 20
"""Number of trials in the table before it is expanded."""

_WEIGHTY = 12
"""Number of parameters in the table of importances before it is expanded."""

_LISTED = 30
"""Maximum number of reasons for refusals that are listed."""

_NOT_SETTINGS = ("space", "train", "training", "networks")


def write_exploration(
    path: Path,
    study: Mapping[str, Any],
    asks: Sequence[Ask],
    results: Sequence[Result],
    title: str,
    configured: Params | None = None,
) -> None:
    """Write the HTML report of a study and, in a folder with its name beside it, its figures.

    Args:
        path: the HTML file.
        study: the content of study.json.
        asks: the proposals; the page counts the refused ones in them.
        results: the results of the trials, at least one.
        title: the heading.
        configured: the values of the baseline, shown in its row of the table. They are in no chart of parameters, as no
            sampler proposed them.
    """
    axes = _axes(study, results)
    figures = _figures(study, results, axes)
    write_figures(path.with_suffix(""), _files(figures))
    page = environment("explore").get_template("exploration.html.jinja")
    write_text(
        path,
        page.render(
            title=title,
            name=study["name"],
            total=len(results),
            counts=Counter(map(_outcome, results)),
            **_best(study, results, axes, configured or {}),
            **figures,
            **_tables(asks, results, axes, configured or {}),
            sentences=_sentences(study, asks, results),
            settings=flatten({key: value for key, value in study.items() if key not in _NOT_SETTINGS}),
            space=[_entry(entry) for entry in study["space"]],
            train=flatten({key: study[key] for key in ("train", "networks", "training") if key in study}),
        ),
    )


def _best(
    study: Mapping[str, Any], results: Sequence[Result], axes: Sequence[Axis], configured: Params
) -> dict[str, Any]:
    best = best_of(results)
    return {
        "best": best,
        "best_name": trial_name(best.number) if best else None,
        "scored_by": "by measure" if study.get("section") else "on each class",
        "best_facts": _facts(best, [axis.name for axis in axes], configured, 6) if best else [],
    }


def _figures(study: Mapping[str, Any], results: Sequence[Result], axes: Sequence[Axis]) -> dict[str, Any]:
    scores = [result.value for result in results if result.value is not None]
    heights = score_range(results)
    weighed = importances(_searched(results))
    rank = {entry.name: place for place, entry in enumerate(weighed)}
    weightiest = sorted(axes, key=lambda axis: rank.get(axis.name, len(rank)))
    return {
        "scored": len(scores),
        "outliers": sum(score < heights[0] for score in scores),
        "lowest": short(heights[0]),
        "highest": short(heights[1]),
        # Semi-transparent marks show how many overlap.
        "opacity": round(min(1.0, max(0.25, (30 / max(len(results), 1)) ** 0.4)), 2),
        "history": history_chart(results, heights),
        "curves": curves_chart(results),
        "importances": weighed,
        "weighty": _WEIGHTY,
        "least_trials": LEAST_TRIALS,
        "shuffles": SHUFFLES,
        "best_count": best_count(len(scores)),
        "parallels": _parallels(study, results, axes, heights),
        "shades": range(SHADES),
        "slices": slice_charts(results, weightiest, heights),
    }


def _files(figures: Mapping[str, Any]) -> list[Figure]:
    """The figures as files."""
    style = chart_style({"explore": ("exploration.css", "exploration_chart.css")}, opacity=str(figures["opacity"]))
    drawn = environment("explore")
    course = [figures["history"], *([figures["curves"]] if figures["curves"].lines else [])]
    charts = {"course": course, "parameters": figures["slices"]}
    made = [
        Figure(kind, chart.title, drawing(drawn, "chart.svg.jinja", chart, style))
        for kind, some in charts.items()
        for chart in some
    ]
    # As on the page: without parameters there is nothing to draw.
    parallels = figures["parallels"] if figures["slices"] else []
    return made + [
        Figure("parallel-coordinates", chart.title, drawing(drawn, "parallel.svg.jinja", chart, style))
        for chart in parallels
    ]


def _tables(asks: Iterable[Ask], results: Sequence[Result], axes: Sequence[Axis], configured: Params) -> dict[str, Any]:
    names = [axis.name for axis in axes]
    shared = [name for name in names if all(name in result.params for result in _searched(results))]
    others = [name for name in names if name not in shared]
    refused = Counter(entry.reason for ask in asks for entry in ask.refused)
    failed = {trial_name(r.number): r.reason or "unknown" for r in results if _outcome(r) == "failed"}
    return {
        "shared": shared,
        "rows": [_row(result, shared, others, configured) for result in in_order(results)],
        "shown": _SHOWN,
        "failures": by_reason(failed),
        "refusals": _most_common(refused),
    }


def _searched(results: Iterable[Result]) -> list[Result]:
    """The results of trials with search parameters: all but the baseline."""
    return [result for result in results if result.params]


def _facts(result: Result, names: Sequence[str], configured: Params, digits: int) -> list[tuple[str, str]]:
    """Names and values of a trial's parameters, in the order of `names` (files sort them otherwise). For the baseline:
    a remark that it is the baseline, and all its configured values."""
    if result.params:
        return _values(result.params, names, digits)
    more = [name for name in configured if name not in names]
    return [("baseline", BASELINE), *_values(configured, [*names, *more], digits)]


def _axes(study: Mapping[str, Any], results: Iterable[Result]) -> list[Axis]:
    """The axes of all parameters that occur in the trials, in the order of the search space."""
    distributions = {name: text for result in results for name, text in result.distributions.items()}
    listed = [entry["name"] for entry in study["space"]]
    names = [name for name in listed if name in distributions] + sorted(distributions.keys() - set(listed))
    return [Axis.of(name, distributions[name]) for name in names]


def _outcome(result: Result) -> str:
    if result.state == "COMPLETE":
        return "complete"
    return "pruned" if (result.reason or "").startswith(BY_PRUNER) else "failed"


def _sentences(study: Mapping[str, Any], asks: Iterable[Ask], results: Sequence[Result]) -> list[str]:
    counts, best = Counter(map(_outcome, results)), best_of(results)
    refused = sum(len(ask.refused) for ask in asks)
    parts = [
        f"{counts['complete']:,} ran to the end",
        f"{counts['pruned']:,} ended early by the {study['pruner']} pruner" if counts["pruned"] else "",
        f"{counts['failed']:,} ended for reasons of their own" if counts["failed"] else "",
    ]
    sentences = [f"{_count(len(results), 'trial')}: {', '.join(part for part in parts if part)}."]
    if refused:
        verb = "was" if refused == 1 else "were"
        sentences.append(f"{_count(refused, 'proposal')} could not be trained and {verb} given back at once.")
    if best and best.value is not None:
        sentences.append(f"The best is trial {trial_name(best.number)} with a validation score of {best.value:.4f}.")
    else:
        sentences.append("As none ran to the end, there is no best trial.")
    sentences += [
        f"{BASELINE.capitalize()}, trial {trial_name(result.number)}, reached {result.value:.4f}."
        for result in results
        if not result.params and result.value is not None
    ]
    return sentences


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _parallels(
    study: Mapping[str, Any], results: Sequence[Result], axes: Sequence[Axis], heights: tuple[float, float]
) -> list[Parallel]:
    """A parallel coordinates plot of the parameters that all networks share, and one for each network family with its
    own options."""
    families = dict.fromkeys(axis.name.split(".")[0] for axis in axes)
    families = {name: None for name in families if len(study.get("networks", ())) > 1 and name in study["networks"]}
    common = [axis for axis in axes if axis.name.split(".")[0] not in families]
    charts = [parallel_chart("All trials", _searched(results), common, heights)] if common else []
    for family in families:
        own = [axis for axis in axes if axis.name.startswith(f"{family}.")]
        trials = [result for result in results if result.params.get("network") == family]
        charts.append(parallel_chart(f"Trials of {family}", trials, own, heights))
    return charts


def _values(params: Params, names: Iterable[str], digits: int) -> list[tuple[str, str]]:
    return [(name, short(params[name], digits)) for name in names if name in params]


def _row(result: Result, shared: Sequence[str], others: Sequence[str], configured: Params) -> dict[str, Any]:
    facts = dict(_facts(result, [*shared, *others], configured, 4))
    return {
        "trial": trial_name(result.number),
        "score": "–" if result.value is None else f"{result.value:.4f}",
        "validations": len(result.intermediate),
        "state": "complete" if result.state == "COMPLETE" else result.reason or "pruned",
        "shared": [facts.get(name, "–") for name in shared],
        "other": ", ".join(f"{name} {value}" for name, value in facts.items() if name not in shared),
    }


def _most_common(refused: Counter[str]) -> list[tuple[str, int]]:
    found = sorted(refused.items(), key=lambda entry: (-entry[1], entry[0]))
    rest = found[_LISTED:]
    return found[:_LISTED] + ([(f"{len(rest):,} other reasons", sum(n for _, n in rest))] if rest else [])


def _entry(entry: Mapping[str, Any]) -> list[str]:
    """An entry of the search space as text: its name, its values, and its conditions."""
    domain = entry["domain"]
    if "choices" in domain:
        values = " · ".join(map(short, domain["choices"]))
    elif "low" in domain:
        step = domain.get("step")
        values = f"{short(domain['low'])} to {short(domain['high'])}"
        values += f" in steps of {short(step)}" if step else ", logarithmic" if domain.get("log") else ""
    else:
        values = f"always {short(domain.get('value'))}"
    conditions = [f"{name} is {' or '.join(map(short, allowed))}" for name, allowed in entry["when"].items()]
    return [entry["name"], values, " and ".join(conditions) or "always"]
