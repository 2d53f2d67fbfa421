"""A project as small as can be, the commands that take it from tomograms to a report, and the bytes they leave."""

from __future__ import annotations

import contextlib
import csv
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from endurance.processes import Ended, run
from tomoscout.data.inventory import read_inventory
from tomoscout.machine.files import digest, digest_file
from tomoscout.options.config import load_config
from tomoscout.plan.plan import Plan

TRIALS = 3
# A network that has hardly learnt finds a thousand of the smallest, which take copick long to read.
_FEW = {"virus-like-particle": 0.12, "proteasome": 0.12, "apo-ferritin": 1.0, "hemoglobin": 1.0}
SETTINGS: dict[str, Any] = {
    "projects": {"phantom": "results/phantom/copick.json"},
    "tomograms": ["wbp@20.0"],
    "targets": {"picks": "phantom/0", "segmentations": ["membrane"], "radius_scale": 0.8},
    "phantom": {
        "runs": 4,
        "shape": [24, 48, 48],
        "voxel_spacing": 20.0,
        "particles": 3,
        "membranes": 1,
        "signal_to_noise": 1.0,
    },
    "split": {"train": ["phantom-000", "phantom-001"], "validate": ["phantom-002"], "test": ["phantom-003"]},
    "runs_per_job": 2,
    "train": {
        "name": "tiny",
        "device": "cpu",
        "steps": 8,
        "batch_size": 2,
        "patch": [16, 16, 16],
        "validate_every": 4,
        "checkpoint_seconds": 0,
        "network": {"channels": [4, 8], "strides": [2]},
    },
    "explore": {
        "trials": TRIALS,
        "window": 2,
        "startup_trials": 2,
        "pruner_startup_trials": 1,
        "pruner_warmup": 1,
        "validations": 2,
        "threads": 1,
        "networks": {"UNet": {"width": {"choices": [4, 8]}, "levels": 2, "bottleneck_levels": 0}},
        "space": {"patch": 16, "batch_size": {"choices": [1, 2]}},
    },
    "segment": {"device": "cpu", "tile": [24, 48, 48], "overlap": 0.25},
    "localize": {"threshold": {**_FEW, "ribosome": 0.1}},
    # MLflow's database takes longer to make than all the rest.
    "tracking": {"enabled": False},
}

OTHER: dict[str, Any] = {
    "targets": {"radius_scale": 0.6},
    "train": {"seed": 7},
    "segment": {"overlap": 0.5},
    "localize": {"threshold": {**_FEW, "ribosome": 0.15}},
    "evaluate": {"distance": 0.7},
    "report": {"title": "Another"},
}
"""Settings under which everything was made before, so that every stage writes over older results."""

_OPTIONS = "--config my.yaml --inventory results/inventory.tsv"
_MODEL = "results/models/tiny"
_TARGETS = "results/targets/targets"


def settings(changes: dict[str, Any]) -> dict[str, Any]:
    """The settings with some options of sections changed."""
    return {
        section: {**options, **changes.get(section, {})} if isinstance(options, dict) else options
        for section, options in {**{section: {} for section in changes}, **SETTINGS}.items()
    }


def write_settings(folder: Path, changes: dict[str, Any]) -> None:
    """Write them as a user would, beside the results."""
    (folder / "my.yaml").write_text(yaml.safe_dump(settings(changes)))


@dataclass(frozen=True)
class Stage:
    """A command; `arguments` may ask the folder what its study is called."""

    name: str
    arguments: Callable[[Path], list[str]]


def stages() -> list[Stage]:
    """All commands, in the order in which they are run."""
    batches = [0, 1]
    return [
        _stage("phantom", "phantom results/phantom --config my.yaml"),
        _stage("inventory", "inventory --config my.yaml --output results/inventory.tsv"),
        *(_stage("targets", f"targets {_OPTIONS} --batch {b} --output {_batch(_TARGETS, b)}") for b in batches),
        *(
            _stage(
                "overlays",
                f"overlays {_OPTIONS} --targets {_TARGETS} --batch {b} --output {_batch(_TARGETS + '/pictures', b)}",
            )
            for b in batches
        ),
        _stage("split", f"split {_OPTIONS} --output results/splits/default.json"),
        _stage("train", f"train {_OPTIONS} --model {_MODEL} --threads 1"),
        *(
            _stage(
                "segment",
                f"segment {_OPTIONS} --model {_MODEL} --threads 1 --batch {b} --output "
                + _batch("results/segment/tiny", b),
            )
            for b in batches
        ),
        *(
            _stage(
                "localize",
                f"localize {_OPTIONS} --model {_MODEL} --segmented results/segment/tiny --batch {b} --output "
                + _batch("results/localize/tiny", b),
            )
            for b in batches
        ),
        _stage("evaluate", f"evaluate {_OPTIONS} --localized results/localize/tiny --output results/evaluate/tiny"),
        _stage(
            "report",
            f"report {_OPTIONS} --model {_MODEL} --localized results/localize/tiny --scores results/evaluate/tiny"
            f" --split results/splits/default.json --targets {_TARGETS} --output results/report/tiny.html",
        ),
        *_study_stages(),
    ]


def _study_stages() -> Iterator[Stage]:
    yield _stage("explore start", f"explore start {_OPTIONS} --study STUDY")
    for number in range(TRIALS):
        yield _stage("explore suggest", f"explore suggest {number} {_OPTIONS} --study STUDY")
        yield _stage("trial run", f"trial run {number} {_OPTIONS} --study STUDY")
    yield _stage("explore summarise", f"explore summarise STUDY --trials {TRIALS}")


def _batch(folder: str, number: int) -> str:
    return f"{folder}/batch-{number:04d}.json"


def _stage(name: str, command: str) -> Stage:
    def arguments(folder: Path) -> list[str]:
        words = command.split()
        return [study_folder(folder) if word == "STUDY" else word for word in words]

    return Stage(name, arguments)


def study_folder(folder: Path) -> str:
    """Folder of the study of the settings and data in `folder`, relative to it."""
    made = sorted((folder / "results/explore").glob("*/study.json"))
    return str((made[-1].parent if made else folder / "results/explore" / _study_name(folder)).relative_to(folder))


def _study_name(folder: Path) -> str:
    from tomoscout.stages.explore import study_of

    with contextlib.chdir(folder):
        return study_of(Plan(load_config(Path("my.yaml")), read_inventory(Path("results/inventory.tsv")))).name


def succeed(stage: Stage, folder: Path) -> Ended:
    """Run a stage, which must succeed.

    Raises:
        RuntimeError: it does not.
    """
    ended = run(stage.arguments(folder), folder)
    if ended.code != 0:
        raise RuntimeError(f"{stage.name} fails undisturbed ({ended.code}):\n{ended.output}")
    return ended


def copy_folder(source: Path, target: Path) -> None:
    """Make `target` a copy of `source`, modification times included: signatures and Snakemake compare them."""
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


# What must be the same in the end

_SCRATCH = re.compile(
    r"(^|/)(logs|benchmarks|\.snakemake|tracking|mlruns)/|(^|/)(checkpoint[^/]*\.pt|mlflow\.db[^/]*|training\.json)$"
)
"""What differs between two undisturbed runs, by path: it holds times, or how far a training was."""


def outcome(folder: Path) -> dict[str, str]:
    """Every file below `folder` that is a result, with the digest of what it says."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() or path.is_symlink())
    names = ((str(path.relative_to(folder)), path) for path in files)
    return {name: _digest(path) for name, path in names if not _SCRATCH.search(name)}


def _digest(path: Path) -> str:
    if path.is_symlink():
        return f"link to {path.readlink()}"
    if path.name == "inventory.tsv":
        return digest(_without_signatures(path.read_text(errors="replace")))
    if path.name == "journal.log":
        return digest(re.sub(rb'"(worker_id|datetime_\w+)":"[^"]*"', b"", path.read_bytes()))
    return digest_file(path)


def _without_signatures(inventory: str) -> list[dict[str, str]]:
    """The rows of an inventory without what comes from modification times."""
    rows = csv.DictReader(inventory.splitlines(), delimiter="\t", restkey="more")
    return [
        {**row, "signature": "", "segmentations": re.sub(r"#\w+", "", row.get("segmentations") or "")} for row in rows
    ]


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """A line for every file that is missing, other than expected, or should not be there."""
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} holds other bytes" for name in expected if found.get(name, expected[name]) != expected[name]]
    return problems + [f"{name} was left behind" for name in found if name not in expected]
