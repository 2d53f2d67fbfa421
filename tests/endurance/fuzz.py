"""Damage configurations, data and results, and see what the commands say: `python tests/endurance/fuzz.py --inputs 1000
--seed 0`. `--only 17` repeats the input of that number.

No command may end in a traceback, hang, or say nothing where what it wrote is not what it writes undamaged.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from endurance import chain
from endurance.chain import copy_folder, differences, outcome
from endurance.fuzz_configurations import configuration_case
from endurance.fuzz_data import RUN, data_case
from endurance.fuzz_results import result_case
from endurance.made_project import RUNS, MadeProject
from endurance.processes import Ended, import_everything, run
from endurance.trials import SECONDS, Case, Failure, judge_messages, messages
from tomoscout.options.config import Config

SUBPROCESSES = 0.01
"""Share of inputs whose first command is a process of its own, too."""

CHEAP = {
    "inventory": "inventory --config my.yaml --output results/inventory.tsv",
    "targets": "targets --config my.yaml --batch 0 --output results/targets/targets/batch-0000.json",
    "overlays": "overlays --config my.yaml --targets results/targets/targets --batch 0 --output"
    " results/targets/targets/pictures/batch-0000.json",
    "split": "split --config my.yaml --output results/splits/default.json",
}
"""The commands that take no training."""


@dataclass(frozen=True)
class Input:
    """A damaged input that went wrong."""

    number: int
    text: str
    failures: list[Failure]


class Fuzz:
    """The undamaged folders, and what comes of them."""

    def __init__(self, base: Path, *, with_results: bool = True) -> None:
        base.mkdir(parents=True, exist_ok=True)
        self.work = base / "work"
        self._made, self._chained = base / "made", base / "chained"
        self._output = base / "output.txt"
        MadeProject.make(self.work)
        copy_folder(self.work, self._made)
        self._run_cheap(Case(""), [])
        self._expected = outcome(self.work)
        self._names = [*sorted(_option_names()), "copick.json", "my.yaml", "config", *(f"demo/{run}" for run in RUNS)]
        if with_results:
            self._make_results(base)

    def _make_results(self, base: Path) -> None:
        shutil.rmtree(self.work)
        self.work.mkdir()
        chain.write_settings(self.work, {})
        for stage in chain.stages():
            chain.succeed(stage, self.work)
        copy_folder(self.work, self._chained)
        self._expected_results = outcome(self.work)

    def try_input(self, kind: str, chance: random.Random) -> tuple[Case, list[Failure]]:
        """Damage one thing and run the commands."""
        if kind == "result":
            return self._try_result(chance)
        copy_folder(self._made, self.work)
        project = MadeProject(self.work)
        case = configuration_case(project, chance) if kind == "configuration" else data_case(project, chance)
        failures: list[Failure] = []
        said = self._run_cheap(case, failures)
        if chance.random() < SUBPROCESSES:
            failures += self._try_process()
        if (self.work / "pwned").exists():
            failures.append(Failure("code was run", case.text))
        if failures:
            return case, failures
        if case.refused and not any(line.startswith(("error", "Error")) for line in said):
            failures.append(Failure("accepted", case.text))
        elif kind == "data":
            failures += self._judge_silence(case, said)
        return case, failures

    def _run_cheap(self, case: Case, failures: list[Failure]) -> list[str]:
        """The cheap commands up to the first that fails; returns what was said."""
        said: list[str] = []
        commands: dict[str, Any] = {name: command.split() for name, command in CHEAP.items()} | {"dry run": _dry_run}
        for name, command in commands.items():
            ended = run(command, self.work, limit=SECONDS)
            if case.text:
                failures += judge_messages(name, ended, self._names + case.about)
            elif ended.code:
                raise RuntimeError(f"{name} fails undamaged:\n{ended.output}")
            said += messages(ended)
            if ended.code != 0:
                break
        return said

    def _try_process(self) -> list[Failure]:
        started = time.monotonic()
        command = [sys.executable, "-m", "tomoscout", *CHEAP["inventory"].split()]
        finished = subprocess.run(command, cwd=self.work, capture_output=True, text=True, errors="replace", check=False)
        ended = Ended(finished.returncode, finished.stdout + finished.stderr, time.monotonic() - started, 0)
        return judge_messages("tomoscout inventory", ended, [""])

    def _judge_silence(self, case: Case, said: list[str]) -> list[Failure]:
        """Whether somebody would know why what was written is not what it is undamaged."""
        places = [f"demo/{RUN}", "copick.json"]
        if case.harmless or any(_is_about(line, case, places) for line in said):
            return []
        errors = [line for line in said if line.startswith("error")]
        if errors and any(word in errors[0] for word in case.about):
            return []
        if errors:
            kind = "stopped by what is not used" if case.text.startswith("unused") else "error names something else"
            return [Failure(kind, f"{case.text}: {errors[0][:200]}")]
        problems = [problem for problem in differences(self._expected, outcome(self.work)) if _is_written(problem)]
        return [Failure("silent nonsense", f"{case.text}: {problems[0]} (of {len(problems)})")] if problems else []

    def _try_result(self, chance: random.Random) -> tuple[Case, list[Failure]]:
        copy_folder(self._chained, self.work)
        case, path, commands = result_case(self.work, chance)
        damaged = str(path.relative_to(self.work))
        failures: list[Failure] = []
        said: list[str] = []
        for command in commands:
            ended = run(command, self.work, limit=3 * SECONDS)
            failures += judge_messages(" ".join(command[:2]), ended, self._names + case.about)
            said += messages(ended)
        wrong = [p for p in differences(self._expected_results, outcome(self.work)) if not p.startswith(damaged)]
        if wrong and not case.harmless and not any(_is_about(line, case, case.about) for line in said):
            failures.append(Failure("silent nonsense", f"{case.text}: {wrong[0]} (of {len(wrong)})"))
        return case, failures


def _is_about(line: str, case: Case, places: list[str]) -> bool:
    return any(place in line for place in places) and any(word in line for word in case.about)


def _is_written(problem: str) -> bool:
    """Whether a difference is one of what was made, not of what was damaged."""
    return "targets-multilabel.zarr/0" in problem or ".png" in problem or problem.startswith("results/splits")


def _dry_run() -> None:
    """What Snakemake asks while it parses and makes its graph."""
    from snakemake.common.configfile import load_configfile

    from tomoscout.machine.errors import TomoscoutError
    from tomoscout.workflow import Workflow

    try:
        flow = Workflow(load_configfile("my.yaml"), "results", main=True)
        for stage in ("targets", "segment", "localize"):
            for batch in flow.batches(stage):
                flow.depends_on(stage, batch)
        for stage in ("overlays", "evaluate"):
            flow.batches(stage)
        _ = flow.applied_models
        for stage in ("split", "evaluate", "report"):
            flow.depends_on(stage)
        flow.base_files()
        flow.depends_on("train", flow.config.train.name)
        for trial in flow.search.trials():
            flow.search.trials_before(trial)
    except TomoscoutError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _option_names() -> set[str]:
    """What options are called, with their section."""

    def inside(model: Any, prefix: str) -> set[str]:
        names = set()
        for name, option in model.model_fields.items():
            names.add(f"{prefix}{option.alias or name}")
            if hasattr(option.annotation, "model_fields"):
                names |= inside(option.annotation, f"{prefix}{option.alias or name}.")
        return names

    return inside(Config, "") | {"top level"}


def fuzz(base: Path, inputs: list[int], seed: int, *, progress: bool = True) -> list[Input]:
    """Try the inputs of these numbers; returns those that went wrong."""
    import_everything()
    import snakemake.common.configfile  # noqa: F401

    trying = Fuzz(base)
    wrong = []
    for number in inputs:
        chance = random.Random(f"{seed}/{number}")
        kind = chance.choices(["configuration", "data", "result"], [0.4, 0.4, 0.2])[0]
        case, failures = trying.try_input(kind, chance)
        if failures:
            wrong.append(Input(number, case.text, failures))
            if progress:
                print(f"{number}: {case.text[:150]}", flush=True)
                print("".join(f"    {kind}: {text[:300]}\n" for kind, text in failures[:4]), end="", flush=True)
    return wrong


def main() -> None:
    """Fuzz; exit 1 where anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the input of this number alone; its folder is kept")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    options = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    base = (options.folder or Path(tempfile.mkdtemp(prefix="tomoscout-fuzz-"))).resolve()
    inputs = list(range(options.inputs)) if options.only is None else [options.only]
    started = time.monotonic()
    wrong = fuzz(base, inputs, options.seed)
    print(f"{len(inputs)} inputs in {time.monotonic() - started:.0f} s, {len(wrong)} went wrong")
    counts = Counter(kind for entry in wrong for kind in {failure.kind for failure in entry.failures})
    for kind, count in counts.most_common():
        print(f"{count:5d} {kind}")
    if options.only is not None:
        print(f"{base / 'work'} is as it was left")
    elif not options.folder:
        shutil.rmtree(base)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
