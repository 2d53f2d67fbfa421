"""Kill the workflow and its stages at random moments, give the same command again, and compare what is there at the
end with what comes of it undisturbed: `python tests/endurance/kills.py --kills 500 --seed 0`.

A stage is killed at the moments that matter, when it is about to change a file, and at moments spread evenly over
its time. `--only 17` repeats the kill of that number; `--every-change targets` leaves out no moment of a stage.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from endurance.chain import OTHER, Stage, copy_folder, differences, outcome, stages, succeed, write_settings
from endurance.half_written import half_written, vanished
from endurance.processes import Ended, Kill, import_everything, run
from endurance.whole import Whole, WholeKill, WholeStart

TWICE = 0.25
"""How often the second attempt is killed, too."""


class Failure(NamedTuple):
    """What went wrong: the kind, to count by, and the particulars."""

    kind: str
    text: str


class Attempt(NamedTuple):
    """What was killed when, and what went wrong."""

    story: str
    failures: list[Failure]


@dataclass(frozen=True)
class Start:
    """A stage, the folder it starts from, and how it ends undisturbed."""

    stage: Stage
    history: str
    before: Path
    expected: dict[str, str]
    undisturbed: Ended

    def __str__(self) -> str:
        return f"{self.stage.name} {self.history}"


def starts_of_stages(base: Path) -> list[Start]:
    """Every stage in a new folder, and over results of other settings; states are kept below `base`."""
    work = base / "work"
    work.mkdir(parents=True)
    write_settings(work, {})
    fresh = list(_take_along(stages(), "in a new folder", work, base / "new"))
    listed = fresh[2].before
    copy_folder(listed, work)
    write_settings(work, OTHER)
    predicting = [stage for stage in stages()[2:] if stage.name.split()[0] not in ("explore", "trial")]
    for stage in predicting:
        succeed(stage, work)
    write_settings(work, {})
    return fresh + list(_take_along(predicting, "over other results", work, base / "again"))


def _take_along(chain: list[Stage], history: str, work: Path, kept: Path) -> Iterator[Start]:
    kept.mkdir()
    for number, stage in enumerate(chain):
        before = kept / f"{number:02d}"
        copy_folder(work, before)
        undisturbed = succeed(stage, work)
        yield Start(stage, history, before, outcome(work), undisturbed)


def random_kill(undisturbed: Ended, chance: random.Random) -> Kill:
    """When and how to kill what took `undisturbed`."""
    kind = chance.choices([signal.SIGKILL, signal.SIGINT, signal.SIGTERM], [0.7, 0.15, 0.15])[0]
    if undisturbed.changes and chance.random() < 0.7:
        # Right before the change, or while it is written.
        seconds = chance.choice([0.0, 10 ** chance.uniform(-5, -2)])
        return Kill(kind, seconds, chance.randint(1, undisturbed.changes))
    return Kill(kind, chance.uniform(0, undisturbed.seconds))


def kill_stage(start: Start, work: Path, kills: list[Kill]) -> Attempt:
    """Kill a stage, once or more often, then run it alone."""
    copy_folder(start.before, work)
    arguments = start.stage.arguments(work)
    failures = []
    for kill in kills:
        ended = run(arguments, work, kill)
        if ended.code is None:
            failures.append(Failure("does not end when told to", str(kill)))
        failures += _half_states(start.before, work)
        failures += _list_runs(start, work)
    failures += _judge(run(arguments, work), start.expected, work)
    return Attempt(f"{start}; {'; '.join(map(str, kills))}", failures)


def kill_whole(whole: Whole, start: WholeStart, work: Path, kills: list[WholeKill]) -> Attempt:
    """The same with the whole workflow."""
    copy_folder(start.before, work)
    failures = []
    for kill in kills:
        ended = whole.run(work, kill)
        if ended.code is None:
            failures.append(Failure("does not end when told to", str(kill)))
        failures += _half_states(start.before, work)
    ended = whole.run(work)
    whole.list_runs(work)
    failures += _judge(ended, start.expected, work)
    return Attempt(f"snakemake {start.history}; {'; '.join(map(str, kills))}", failures)


def _half_states(before: Path, work: Path) -> list[Failure]:
    """What another program would stumble over now."""
    gone = [Failure("vanished", problem) for problem in vanished(before, work)]
    return gone + [Failure("half-written", problem) for problem in half_written(work / "results")]


def _list_runs(start: Start, work: Path) -> list[Failure]:
    """What the next start of the workflow does first: it looks at every file of the project."""
    if start.stage.name == "phantom":
        return []
    listed = work / "listed.tsv"
    ended = run(["inventory", "--config", "my.yaml", "--output", listed.name], work)
    listed.unlink(missing_ok=True)
    return [] if ended.code == 0 else [Failure("inventory fails", _last_line(ended.output))]


def _judge(ended: Ended, expected: dict[str, str], work: Path) -> list[Failure]:
    if ended.code is None:
        return [Failure("stuck", f"no end after {ended.seconds:.0f} s; {_last_line(ended.output)}")]
    if ended.code != 0:
        return [Failure("fails", f"exit {ended.code}: {_last_line(ended.output)}")]
    return [
        Failure("left behind" if problem.endswith("left behind") else "other end", problem)
        for problem in differences(expected, outcome(work))
    ]


def _last_line(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def attempts_at_random(base: Path, numbers: list[int], seed: int, workflow_share: float) -> Iterator[Attempt]:
    """The kills of these numbers."""
    starts = starts_of_stages(base)
    whole = Whole(base, starts[1].before) if workflow_share else None
    for number in numbers:
        chance = random.Random(f"{seed}/{number}")
        times = range(1 + (chance.random() < TWICE))
        if whole and chance.random() < workflow_share:
            begun = chance.choice(whole.starts)
            kills = [WholeKill.at_random(begun.undisturbed, chance) for _ in times]
            yield kill_whole(whole, begun, base / "work", kills)
        else:
            start = chance.choice(starts)
            yield kill_stage(start, base / "work", [random_kill(start.undisturbed, chance) for _ in times])


def attempts_at_every_change(base: Path, name: str) -> Iterator[Attempt]:
    """A stage, or all, killed right before each change of files it makes, and while it writes."""
    for start in starts_of_stages(base):
        if name in (start.stage.name, "all"):
            for change, seconds in product(range(1, start.undisturbed.changes + 1), (0.0, 1e-4)):
                yield kill_stage(start, base / "work", [Kill(signal.SIGKILL, seconds, change)])


def endure(attempts: Iterator[Attempt]) -> bool:
    """Kill, and print what goes wrong; whether nothing did."""
    counts: Counter[str] = Counter()
    started, number, wrong = time.monotonic(), -1, 0
    for number, (story, failures) in enumerate(attempts):
        wrong += bool(failures)
        counts.update({failure.kind for failure in failures})
        if failures or number % 50 == 0:
            print(f"{number}: {story}" + ("" if failures else ": well"), flush=True)
        for kind, text in failures[:8]:
            print(f"    {kind}: {text}", flush=True)
    print(f"{number + 1} kills in {time.monotonic() - started:.0f} s, {wrong} went wrong")
    for kind, count in counts.most_common():
        print(f"{count:5d} {kind}")
    return not wrong


def main() -> None:
    """Kill; exit 1 where anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workflow-share", type=float, default=0.1, help="share of kills of the whole workflow")
    parser.add_argument("--only", type=int, help="the kill of this number alone; name a folder to look at the end")
    parser.add_argument("--every-change", metavar="STAGE", help="a stage, or all, killed at each change of files")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    options = parser.parse_args()
    base = (options.folder or Path(tempfile.mkdtemp(prefix="tomoscout-kills-"))).resolve()
    import_everything()
    if options.every_change:
        went_well = endure(attempts_at_every_change(base, options.every_change))
    else:
        numbers = list(range(options.kills)) if options.only is None else [options.only]
        went_well = endure(attempts_at_random(base, numbers, options.seed, options.workflow_share))
    if not options.folder:
        shutil.rmtree(base)
    sys.exit(not went_well)


if __name__ == "__main__":
    main()
