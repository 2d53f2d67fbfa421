"""The table of stages: what it says holds, and a stage that only a test knows is planned, run, made anew, verified."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.project import SmallProject
from tomoscout.plan.stages import STAGES

ROOT = Path(__file__).parents[2]
TOY = ROOT / "tests/support/toy_stage.py"

SNAKEFILE = f"""
sys.path.insert(0, {str(TOY.parents[1])!r})
import support.toy_stage

include: {str(ROOT / "workflow/Snakefile")!r}

TOY = "<results>/toy/counts"


rule toy_runs:
    input:
        f"{{TARGETS}}/batch-{{{{batch}}}}.json",
    output:
        f"{{TOY}}/batch-{{{{batch}}}}.json",
    params:
        settings=SETTINGS,
        inventory=INVENTORY,
        depends_on=depends_on("toy"),
    shell:
        "{sys.executable} {TOY} toy --config {{params.settings:q}} --inventory {{params.inventory:q}}"
        " --batch {{wildcards.batch}} --output {{output:q}}"


rule toy:
    input:
        files(lambda wildcards: batch_files(TOY, flow.batches("toy"))),
    localrule: True
"""


def test_a_stage_has_one_name() -> None:
    rules = "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    for name in STAGES:
        assert re.search(rf"^rule {name}(_\w+)?:", rules, re.MULTILINE), f"no rule of {name}"
        if name != "phantom":
            assert (ROOT / f"src/tomoscout/stages/{name}.py").exists()
        if name not in ("phantom", "explore"):
            assert f"def run_{name}(" in (ROOT / f"src/tomoscout/stages/{name}.py").read_text()
        if name != "phantom":
            command = subprocess.run(
                [sys.executable, "-m", "tomoscout", name.replace("_", "-"), "--help"], capture_output=True, check=False
            )
            assert command.returncode == 0, f"no command of {name}"


class Toy:
    """A working directory with two annotated runs in batches of their own, and a Snakefile with one more stage."""

    def __init__(self, folder: Path) -> None:
        self.project = SmallProject(folder)
        for number, run in enumerate(("a", "b"), 1):
            self.project.add_run(run)
            self.project.add_picks(run, "ribosome:expert/0", [(100.0, 100.0, 100.0 + 20 * n) for n in range(number)])
        self.project.configure(runs_per_job=1)
        (folder / "Snakefile").write_text(f"import sys\n{SNAKEFILE}")

    def snakemake(self, version: int, *arguments: str) -> str:
        command = ["snakemake", "toy", "--cores", "1", "--configfile", str(self.project.settings), *arguments]
        return self._run(version, command)

    def rules(self, version: int, *arguments: str) -> list[str]:
        """The rules of which Snakemake announces jobs."""
        output = self.snakemake(version, *arguments)
        return sorted(set(re.findall(r"^(?:local)?rule (\w+_runs):", output, re.MULTILINE)))

    def verify(self) -> str:
        options = ["--config", str(self.project.settings), "--inventory", str(self.project.inventory)]
        return self._run(1, [sys.executable, str(TOY), "verify", *options], check=False)

    def file(self, run: str) -> Path:
        return self.project.folder / f"results/toy/counts/demo/{run}.txt"

    def _run(self, version: int, command: list[str], *, check: bool = True) -> str:
        environment = os.environ | {"TOY_VERSION": str(version)}
        done = subprocess.run(
            command,
            cwd=self.project.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout
        return done.stdout


@pytest.mark.workflow
@pytest.mark.long
def test_a_stage_is_a_module_a_row_a_rule_and_a_command(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    assert toy.rules(1) == ["targets_runs", "toy_runs"]
    assert [toy.file(run).read_text() for run in ("a", "b")] == ["1: 1\n", "1: 2\n"]
    assert toy.rules(1, "--dry-run") == []
    # Two targets and two files.
    assert toy.verify() == "4 digests compared, 0 problems\n"

    assert toy.rules(2) == ["toy_runs"]
    assert [toy.file(run).read_text() for run in ("a", "b")] == ["2: 1\n", "2: 2\n"]
    assert toy.rules(2, "--dry-run") == []

    toy.file("a").write_text("2: 7\n")
    toy.file("b").unlink()
    *problems, last = toy.verify().splitlines()
    manifests = [toy.file(run).with_suffix(".json").relative_to(tmp_path) for run in ("a", "b")]
    assert problems == [
        f"error: {manifests[0]}: file a.txt has changed since it was written",
        f"error: {manifests[1]}: file b.txt is gone",
    ]
    assert last == "4 digests compared, 2 problems"
