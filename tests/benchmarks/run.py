"""Measure tomoscout, beside octopi where both do the same: `python tests/benchmarks/run.py all`."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from budgets import budgets
from exploring import others, tpe
from few import few
from large import SHAPES, large
from makespans import makespans
from measure import machine
from phantom_trainings import searches
from segmenting import segmenting
from starting import dryrun, startup
from studies import dry_runs, proposals
from training import sampling, speed, validation

from learning import KINDS, learning
from stages import localize, phantom, targets


def main() -> None:
    """Run the benchmarks asked for; print their tables, and write them to a file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    everything = ["targets", "startup", "dryrun", "localize", "phantom", "sampling", "speed", "learning", "validation"]
    everything += [
        "segmenting",
        "large",
        "few",
        "studies",
        "makespans",
        "proposals",
        "tpe",
        "samplers",
        "searches",
        "budgets",
    ]
    parser.add_argument("what", nargs="+", choices=[*everything, "all"])
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each (localize by octopi: 1)")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="of a measurement (sampling, speed); between scores"
    )
    parser.add_argument("--steps", type=int, default=60, help="validation: length of the trainings")
    parser.add_argument("--maps", type=Path, help="learning: folder of density maps, for more kinds; few needs it")
    parser.add_argument("--few-steps", type=int, default=300, help="few: length of the trainings")
    parser.add_argument("--kinds", nargs="+", default=[], choices=KINDS, help="learning: some kinds alone")
    parser.add_argument("--sizes", nargs="+", default=list(SHAPES), choices=SHAPES, help="large: some sizes alone")
    parser.add_argument("--train-seconds", type=float, default=190.0, help="learning: length of each training")
    parser.add_argument("--seeds", type=int, default=3, help="learning: trainings of each tool")
    parser.add_argument("--octopi-seeds", type=int, help="learning: fewer of them by octopi")
    parser.add_argument("--searches", type=int, default=24, help="tpe, samplers, searches: seeds; budgets: trials")
    parser.add_argument("--runs", type=int, nargs="+", default=[1000, 10_000], help="sizes of the dry-run projects")
    parser.add_argument("--without-octopi", action="store_true", help="localize: tomoscout alone")
    parser.add_argument("--output", type=Path, help="Markdown file for the tables")
    options = parser.parse_args()
    repeats: int = options.repeats
    benchmarks: dict[str, Callable[[Path], str]] = {
        "targets": lambda folder: targets(folder, repeats),
        "localize": lambda folder: localize(folder, repeats, with_octopi=not options.without_octopi),
        "startup": lambda folder: startup(folder, repeats),
        "phantom": lambda folder: phantom(folder, repeats),
        "dryrun": lambda folder: dryrun(folder, repeats, options.runs),
        "sampling": lambda folder: sampling(folder, repeats, options.seconds),
        "speed": lambda folder: speed(folder, repeats, options.seconds),
        "learning": lambda folder: learning(
            folder,
            options.maps,
            options.kinds,
            options.seeds,
            options.seeds if options.octopi_seeds is None else options.octopi_seeds,
            options.train_seconds,
            options.seconds,
        ),
        "validation": lambda folder: validation(folder, options.steps),
        "few": lambda folder: few(folder, options.maps, options.seeds, options.few_steps),
        "segmenting": lambda folder: segmenting(repeats),
        "large": lambda folder: large(folder, options.sizes),
        "studies": lambda folder: dry_runs(folder, repeats, [100, 400, 1000]),
        "makespans": lambda folder: makespans(20),
        "proposals": lambda folder: proposals(folder, repeats, [10, 100, 1000]),
        "tpe": lambda folder: tpe(options.searches),
        "samplers": lambda folder: others(options.searches),
        "searches": lambda folder: searches(folder, options.searches),
        "budgets": lambda folder: budgets(folder, options.searches),
    }
    tables = [machine()]
    print(tables[0])
    without_maps = [name for name in everything if name != "few" or options.maps]
    for name in without_maps if "all" in options.what else options.what:
        with tempfile.TemporaryDirectory(prefix="tomoscout-bench-") as folder:
            tables.append(benchmarks[name](Path(folder)))
        print(tables[-1], flush=True)
    if options.output:
        options.output.write_text("\n".join(tables))


if __name__ == "__main__":
    main()
