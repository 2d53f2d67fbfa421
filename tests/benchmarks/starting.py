"""Seconds until a command works, and until the workflow knows what to do."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from made_up import make_project, write_config
from measure import COSTS, TOMOSCOUT, costs, run, table

ROOT = Path(__file__).parents[2]
TINY = """
projects: {phantom: phantom/copick.json}
tomograms: [wbp@10.0]
targets: {picks: phantom/0}
phantom: {runs: 3, shape: [48, 128, 128], particles: 1}
split: {ratios: [0.4, 0.3]}
train: {device: cpu, steps: 1, batch_size: 1, patch: [16, 16, 16], validate_every: 1,
        network: {channels: [4, 8], strides: [2]}}
segment: {device: cpu, tile: [48, 128, 128]}
"""
COMMANDS = {
    "inventory": "--output results/inventory.tsv",
    "targets": "--batch 0 --output results/targets/0.json",
    "overlays": "--targets results/targets --batch 0 --output results/targets/pictures/0.json",
    "split": "--output results/split.json",
    "train": "--model results/model --threads 1",
    "segment": "--model results/model --batch 0 --output results/segment/0.json --threads 1",
    "localize": "--model results/model --segmented results/segment --batch 0 --output results/localize/0.json",
    "evaluate": "--localized results/localize --output results/scores",
    "report": "--model results/model --localized results/localize --scores results/scores --split results/split.json"
    " --targets results/targets --output results/report.html",
    "verify": "",
}


def startup(folder: Path, repeats: int) -> str:
    """Every command on a project of three tiny tomograms whose results are there already."""
    (folder / "tiny.yaml").write_text(TINY)
    run([*TOMOSCOUT, "phantom", "phantom", "--config", "tiny.yaml"], folder=folder)
    commands = {name: [name, "--config", "tiny.yaml", *options.split()] for name, options in COMMANDS.items()}
    for command in commands.values():
        run([*TOMOSCOUT, *command], folder=folder)
    rows = []
    for name, command in {"--help": ["--help"], **commands}.items():
        measured = [run([*TOMOSCOUT, *command], folder=folder) for _ in range(repeats)]
        total, packages = _imports(folder, command)
        rows.append([f"`tomoscout {name}`", *costs(measured), f"{total:.2f}", packages])
    columns = ["command", *COSTS, "imports s (slowed by their timing)", "most of it"]
    return table("Start-up", columns, rows)


def _imports(folder: Path, command: list[str]) -> tuple[float, str]:
    """Seconds of all imports, and the packages that take most of them."""
    trace = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "tomoscout", *command],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    ).stderr
    spent: Counter[str] = Counter()
    for own, module in re.findall(r"^import time: +(\d+) \| +\d+ \| +(\S+)$", trace, flags=re.MULTILINE):
        spent[module.split(".")[0]] += int(own)
    largest = ", ".join(f"{name} {microseconds / 1e6:.2f}" for name, microseconds in spent.most_common(4))
    return spent.total() / 1e6, largest


def dryrun(folder: Path, repeats: int, sizes: list[int]) -> str:
    """Inventory and dry run of large projects."""
    rows: list[list[object]] = []
    for size in sizes:
        project = make_project(folder / f"project-{size}", size, picks=12)
        for runs_per_job in (10, 1):
            place = folder / f"{size}-{runs_per_job}"
            place.mkdir()
            config = write_config(place / "config.yaml", project, runs_per_job)
            inventory = [*TOMOSCOUT, "inventory", "--config", config, "--output", "results/inventory.tsv"]
            run(inventory, folder=place)
            dry: list[str | Path] = [
                sys.executable,
                "-m",
                "snakemake",
                "-n",
                "-q",
                "--cores",
                "2",
                "--snakefile",
                ROOT / "Snakefile",
            ]
            dry += ["--configfile", config, "--directory", place]
            commands = {f"dry run, {runs_per_job} run(s) per job": dry}
            if runs_per_job > 1:
                commands |= {"inventory, every run read": [*inventory, "--all"], "inventory, nothing new": inventory}
            for what, command in commands.items():
                rows.append([size, what, *costs([run(command, folder=place) for _ in range(repeats)])])
        shutil.rmtree(project.parent)
    return table("Inventory and dry run", ["runs", "", *COSTS], rows)
