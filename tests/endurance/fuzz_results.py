"""Damaged results: every file that a later command reads, cut off, emptied, edited by hand."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from endurance.chain import TRIALS, study_folder
from endurance.damage import damage_file, damage_json
from endurance.trials import Case

_OPTIONS = "--config my.yaml --inventory results/inventory.tsv"
_TARGETS = "results/targets/targets"
_MODEL = "results/models/tiny"

TARGETS = f"targets {_OPTIONS} --batch 0 --output {_TARGETS}/batch-0000.json"
OVERLAYS = f"overlays {_OPTIONS} --targets {_TARGETS} --batch 0 --output {_TARGETS}/pictures/batch-0000.json"
SPLIT = f"split {_OPTIONS} --output results/splits/default.json"
TRAIN = f"train {_OPTIONS} --model {_MODEL} --threads 1"
SEGMENT = f"segment {_OPTIONS} --model {_MODEL} --threads 1 --batch 0 --output results/segment/tiny/batch-0000.json"
LOCALIZE = (
    f"localize {_OPTIONS} --model {_MODEL} --segmented results/segment/tiny --batch 0"
    " --output results/localize/tiny/batch-0000.json"
)
EVALUATE = f"evaluate {_OPTIONS} --output results/evaluate/tiny"
SHOW = "show-scores results/evaluate/tiny"
REPORT = (
    f"report {_OPTIONS} --model {_MODEL} --scores results/evaluate/tiny --split results/splits/default.json"
    f" --targets {_TARGETS} --output results/report/tiny.html"
)
VERIFY = f"verify {_OPTIONS}"
SUGGEST = f"explore suggest {TRIALS - 1} {_OPTIONS} --study STUDY"
TRIAL = f"trial run {TRIALS - 1} {_OPTIONS} --study STUDY"
SUMMARISE = f"explore summarise STUDY --trials {TRIALS}"
STATUS = "explore status"
INVENTORY = "inventory --config my.yaml --output results/inventory.tsv"


@dataclass(frozen=True)
class Target:
    """A kind of file and the commands that read it. `is_binary`: any other byte is damage."""

    pattern: str
    commands: list[str]
    is_binary: bool = False


TARGETS_OF_DAMAGE = [
    Target("results/inventory.tsv", [INVENTORY, TARGETS, SPLIT]),
    Target(f"{_TARGETS}/phantom/phantom-000.json", [TARGETS, OVERLAYS, REPORT, VERIFY]),
    Target(f"{_TARGETS}/pictures/phantom/phantom-000.json", [OVERLAYS, VERIFY]),
    Target("results/segment/tiny/phantom/phantom-000.json", [LOCALIZE, SEGMENT, VERIFY]),
    Target("results/localize/tiny/phantom/phantom-000.json", [LOCALIZE, EVALUATE, VERIFY]),
    Target("results/splits/default.json", [REPORT]),
    Target(f"{_MODEL}/model.yaml", [SEGMENT, LOCALIZE, REPORT, VERIFY]),
    Target(f"{_MODEL}/weights.safetensors", [SEGMENT, VERIFY], is_binary=True),
    Target(f"{_MODEL}/checkpoint.pt", [TRAIN], is_binary=True),
    Target(f"{_MODEL}/training.json", [REPORT]),
    Target(f"{_MODEL}/metrics.csv", [REPORT]),
    Target(f"{_MODEL}/results.json", [REPORT]),
    Target("results/evaluate/tiny/scores.json", [SHOW, REPORT]),
    Target("results/evaluate/tiny/curves.csv", [REPORT]),
    Target("results/explore/*/study.json", [SUGGEST, SUMMARISE, STATUS]),
    Target("results/explore/*/0000/ask.json", [SUGGEST, SUMMARISE, STATUS]),
    Target("results/explore/*/0000/result.json", [SUGGEST, SUMMARISE, STATUS]),
    Target(f"results/explore/*/{TRIALS - 1:04d}/ask.json", [TRIAL, SUMMARISE]),
    Target("results/explore/*/journal.log", [SUMMARISE]),
    Target("results/phantom/ExperimentRuns/phantom-000/Picks/tomoscout_*.json", [LOCALIZE, EVALUATE, VERIFY]),
    Target("results/phantom/ExperimentRuns/phantom-000/VoxelSpacing*/*features.zarr/0/1/0/0/0", [LOCALIZE], True),
    Target("results/phantom/ExperimentRuns/phantom-000/Segmentations/*targets*.zarr/0/0/0/0", [OVERLAYS], True),
]


def result_case(folder: Path, chance: random.Random) -> tuple[Case, Path, list[list[str]]]:
    """One result damaged: the case, the file, and the commands to run on it."""
    target = chance.choice(TARGETS_OF_DAMAGE)
    path = chance.choice(sorted(folder.glob(target.pattern)))
    study = study_folder(folder)
    done = _way(target, path, chance)(path, chance)
    name = str(path.relative_to(folder))
    commands = [command.replace("STUDY", study).split() for command in target.commands]
    about = [path.name, path.parent.name, path.stem, "phantom-000"]
    harmless = "edited by hand" if ": " in done or "without" in done else ""
    return Case(f"{name}: {done}", about=about, harmless=harmless), path, commands


def _way(target: Target, path: Path, chance: random.Random) -> Callable[[Path, random.Random], str]:
    if target.is_binary and chance.random() < 0.4:
        return _other_bytes
    if path.suffix == ".json" and chance.random() < 0.5:
        return damage_json
    return damage_file


def _other_bytes(path: Path, chance: random.Random) -> str:
    content = bytearray(path.read_bytes())
    for _ in range(20):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)
    return "other bytes"
