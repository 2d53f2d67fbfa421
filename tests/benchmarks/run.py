"""Measure tomoscout, beside octopi where both do the same: `python tests/benchmarks/run.py all`."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from measure import machine
from stages import localize, phantom, targets
from starting import dryrun, startup


def main() -> None:
    """Run the benchmarks asked for; print their tables, and write them to a file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["targets", "startup", "dryrun", "localize", "phantom", "all"])
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each (localize by octopi: 1)")
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
    }
    tables = [machine()]
    print(tables[0])
    for name in benchmarks if options.what == "all" else [options.what]:
        with tempfile.TemporaryDirectory(prefix="tomoscout-bench-") as folder:
            tables.append(benchmarks[name](Path(folder)))
        print(tables[-1], flush=True)
    if options.output:
        options.output.write_text("\n".join(tables))


if __name__ == "__main__":
    main()
