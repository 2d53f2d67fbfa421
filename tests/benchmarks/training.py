"""The training engine beside octopi's on one phantom: how fast batches are drawn and how long a step takes; and what
validation costs, and memory."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure import TOMOSCOUT, Command, first_cores, on_cores, run, spread, table
from peer import Octopi, octopi

from tomoscout.data.inventory import RunRecord, read_inventory
from tomoscout.machine.files import read_json, write_json
from tomoscout.options.config import Config, load_config
from tomoscout.options.names import TomogramUri
from tomoscout.plan.plan import Plan

if TYPE_CHECKING:
    import torch
    from torch import nn


CORES = len(first_cores(2))
URI = TomogramUri("wbp", 10.0)
USER, SESSION = "phantom", "0"
SCALE, PARTICLES = 0.8, 12
RUNS = [f"phantom-{number:03d}" for number in range(9)]
TRAIN, VALIDATE, TEST = RUNS[:4], RUNS[4:5], RUNS[5:]
PATCH, CROPS = 48, 4
NETWORK = {"channels": [16, 32, 64], "strides": [2, 2], "residual_units": 1}
THEIR_RATE, THEIR_ALPHA = 1e-3, 0.3
"""octopi's learning rate and alpha of its Tversky loss: its defaults, and its guide's."""


@dataclass(frozen=True)
class Bench:
    """The phantom with the targets of both tools."""

    folder: Path
    config: Config
    records: list[RunRecord]

    @property
    def project(self) -> Path:
        """Its copick configuration."""
        return Path(self.config.projects["phantom"])

    def changed(self, **train: Any) -> Config:
        """The configuration with other options of the training."""
        values = self.config.model_dump(mode="json", by_alias=True)
        return Config.model_validate({**values, "train": {**values["train"], **train}})

    def octopi(self) -> Octopi:
        """octopi, set up for the same training."""
        return Octopi(
            self.folder / "octopi.log",
            CORES,
            project=str(self.project),
            target={"name": "targets", "user_id": "octopi", "session_id": "1"},
            tomogram=str(URI),
            train=TRAIN,
            validate=VALIDATE,
            model={
                "architecture": "Unet",
                "channels": NETWORK["channels"],
                "strides": NETWORK["strides"],
                "num_res_units": NETWORK["residual_units"],
                "dropout": 0.0,
                "dim_in": PATCH,
            },
            crops=CROPS,
            learning_rate=THEIR_RATE,
            alpha=THEIR_ALPHA,
            seed=0,
        )


@contextmanager
def set_up(
    folder: Path, *, with_octopi: bool = True, phantom: Mapping[str, Any] | None = None, **train: Any
) -> Iterator[Bench]:
    """Make the phantom and the targets of each tool, and keep to the cores of the comparison."""
    # What `tomoscout train` sets for itself. octopi gets it too: its loader and its steps share the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    path = folder / "config.yaml"
    values = {
        "projects": {"phantom": str(folder / "phantom" / "copick.json")},
        "tomograms": [str(URI)],
        "targets": {"picks": f"{USER}/{SESSION}"},
        "phantom": {"runs": len(RUNS), "particles": PARTICLES, **(phantom or {})},
        "split": {"train": TRAIN, "validate": VALIDATE, "test": TEST},
        "train": {"device": "cpu", "patch": [PATCH] * 3, "batch_size": CROPS, "network": NETWORK, **train},
        "tracking": {"enabled": False},
    }
    write_json(path, values)
    made = ["--config", path]
    run([*TOMOSCOUT, "phantom", folder / "phantom", *made], folder=folder)
    run([*TOMOSCOUT, "inventory", *made, "--output", folder / "inventory.tsv"], folder=folder)
    made += ["--inventory", folder / "inventory.tsv"]
    run([*TOMOSCOUT, "targets", *made, "--batch", "0", "--output", folder / "targets.json"], folder=folder)
    bench = Bench(folder, load_config(path), read_inventory(folder / "inventory.tsv"))
    if with_octopi:
        _make_their_targets(bench)
    with on_cores(CORES):
        yield bench


def _make_their_targets(bench: Bench) -> None:
    """octopi's own targets, with the radius scale of its guide."""
    command: list[str | Path] = [octopi(), "create-targets", "-c", bench.project, "-puid", USER, "-psid", SESSION]
    run([*command, "-uri", f"{URI}", "-rs", str(SCALE), "-turi", "targets:octopi/1"], folder=bench.folder)


class Enough(Exception):
    """What was wanted of the training stage is there."""


def training_stage(bench: Bench, config: Config, fit: Callable[..., object]) -> None:
    """Run the training stage up to its loop, and `fit` in place of that. What it prints goes to a log."""
    from tomoscout.learning import training
    from tomoscout.stages.train import run_train

    def instead(*given: Any, **named: Any) -> None:
        fit(*given, **named)
        raise Enough

    original = training.fit
    training.fit = instead
    try:
        with suppress(Enough), (bench.folder / "train.log").open("a") as log, redirect_stderr(log):
            run_train(Plan(config, bench.records), bench.folder / config.train.name, threads=CORES)
    finally:
        training.fit = original


@dataclass(frozen=True)
class Loop:
    """What the training stage hands to its loop."""

    network: nn.Module
    batches: Callable[..., tuple[torch.Tensor, tuple[torch.Tensor, ...]]]
    loss: nn.Module
    options: Any


def _loop(bench: Bench, **train: Any) -> Loop:
    found: list[Loop] = []

    def keep(
        network: nn.Module, batches: Any, loss: nn.Module, validate: object, options: object, *_: object, **__: object
    ) -> None:
        found.append(Loop(network, batches, loss, options))

    training_stage(bench, bench.changed(**train), keep)
    return found[0]


# Sampling


def sampling(folder: Path, rounds: int, seconds: float) -> str:
    """Batches of four crops with each tool's own augmentation, nothing being done with them."""
    with set_up(folder) as bench, bench.octopi() as theirs:
        loop, without_turns = _loop(bench), _loop(bench, augmentation={"rotate": 0, "tilt": 0})
        _draw(loop, 0.5)
        theirs.ask("sample", seconds=0)
        each: dict[str, list[dict[str, float]]] = {}
        for _ in range(rounds):
            for what, found in (
                ("tomoscout: crops chosen, cut and augmented", _draw(loop, seconds)),
                ("tomoscout, without its turns", _draw(without_turns, seconds)),
                ("octopi: its data loader, as its trainer asks for it", theirs.ask("sample", seconds=seconds)),
                ("octopi: its data set alone, a draw after the other", theirs.ask("draw", seconds=seconds)),
            ):
                each.setdefault(what, []).append(found)
    speeds = {what: [found["done"] / found["seconds"] for found in measured] for what, measured in each.items()}
    peer = list(speeds.values())[2]
    rows = [
        [
            what,
            sum(int(found["done"]) for found in each[what]),
            spread(speed),
            spread(1000 / value for value in speed),
            spread((value / other for value, other in zip(speed, peer, strict=True)), 1),
        ]
        for what, speed in speeds.items()
    ]
    columns = ["", "batches drawn", "batches/s", "ms per batch", "× octopi's loader"]
    return table(f"Batches of {CROPS} crops of {PATCH}³ from {len(TRAIN)} tomograms of 64×192×192", columns, rows)


def _draw(loop: Loop, seconds: float) -> dict[str, float]:
    done, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds:
        loop.batches(done, {})
        done += 1
    return {"done": done, "seconds": spent}


# Steps


def speed(folder: Path, rounds: int, seconds: float) -> str:
    """A step of the same network on batches that were drawn before: forward, loss, backward, optimiser, averages."""
    tversky = {"name": "Tversky", "alpha": THEIR_ALPHA, "beta": 1 - THEIR_ALPHA}
    with set_up(folder) as bench, bench.octopi() as theirs:
        loops = {"tomoscout": _loop(bench), "tomoscout with octopi's loss (Tversky)": _loop(bench, loss=tversky)}
        each: dict[str, list[dict[str, float]]] = {}
        for number in range(rounds + 1):
            found = {what: _step(bench, loop, seconds if number else 0) for what, loop in loops.items()}
            found["octopi"] = theirs.ask("step", seconds=seconds if number else 0, batches=8)
            for what, measured in found.items() if number else ():
                each.setdefault(what, []).append(measured)
    times = {what: [1000 * m["seconds"] / m["done"] for m in measured] for what, measured in each.items()}
    rows = [
        [
            what,
            sum(int(m["done"]) for m in each[what]),
            spread(values, 1),
            spread(value / other for value, other in zip(values, times["octopi"], strict=True)),
        ]
        for what, values in times.items()
    ]
    columns = ["", "steps", "ms per step", "× octopi's"]
    return table(f"A training step: UNet 16, 32, 64 on {CROPS} crops of {PATCH}³", columns, rows)


def _step(bench: Bench, loop: Loop, seconds: float) -> dict[str, float]:
    """Steps of the real loop for at least so many seconds, on eight batches in turn; two more before the clock runs."""
    import copy

    import torch
    from gpu_tools import NoCheckpoint

    from tomoscout.learning.progression import Validation
    from tomoscout.learning.trainer import fit

    drawn = [loop.batches(step, {}) for step in range(8)]
    clock = {"started": 0.0, "done": 0}

    def batches(step: int, *_: object) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        now = time.perf_counter()
        if step == 2:
            clock["started"] = now
        elif step > 8 and now - clock["started"] >= seconds:
            clock["seconds"], clock["done"] = now - clock["started"], step - 2
            raise Enough
        return drawn[step % 8]

    options = loop.options.model_copy(update={"steps": 10**6})
    nothing = Validation(0.0, {}, {})
    with (bench.folder / "train.log").open("a") as log, redirect_stderr(log), suppress(Enough):
        fit(
            copy.deepcopy(loop.network),
            batches,
            loop.loss,
            lambda _: nothing,
            options,
            NoCheckpoint(),
            torch.device("cpu"),
            validate_every=10**6,
        )
    return clock


# Validation and memory


def validation(folder: Path, steps: int) -> str:
    """Whole trainings by the command line: what validation costs at the default interval, and the memory taken."""
    plans: dict[str, dict[str, Any]] = {
        "every option at its default; 1 tomogram validates": {"train": {"device": "cpu"}},
        f"UNet 16, 32, 64, {CROPS} crops of {PATCH}³; 1 tomogram validates": {},
        f"the same; {len(TEST) + 1} tomograms validate": {"split": {"train": TRAIN, "validate": VALIDATE + TEST}},
    }
    rows = []
    with set_up(folder, with_octopi=False) as bench:
        for number, (what, changes) in enumerate(plans.items()):
            values = bench.config.model_dump(mode="json", by_alias=True) | changes
            values["train"] = {**values["train"], "steps": steps, "validate_every": None}
            path, model = folder / f"plan-{number}.yaml", folder / f"model-{number}"
            write_json(path, values)
            given = ["--config", path, "--inventory", folder / "inventory.tsv", "--threads", CORES, "--model", model]
            memory = _train_by_command([*TOMOSCOUT, "train", *map(str, given)], folder)
            rows.append([what, *_shares(model), *memory])
            print(" | ".join(map(str, rows[-1])), file=sys.stderr)
    shares = ["steps", "training s", "validations", "validation s", "default interval", "validation / training there"]
    memory = ["MB before", "MB at most", "of these for the training", "announced"]
    return table("Whole trainings: validation and memory", ["", *shares, *memory], rows)


def _shares(model: Path) -> list[object]:
    facts = read_json(model / "training.json")
    with (model / "metrics.csv").open(newline="") as handle:
        validations = sum(bool(row["score"]) for row in csv.DictReader(handle))
    steps, spent, validating = facts["steps"], facts["seconds"], facts["validation_seconds"]
    interval = facts["options"]["validate_every"]
    # The last validation comes at the end, however near the one before.
    share = validating / validations / (interval * spent / steps)
    return [steps, f"{spent:.1f}", validations, f"{validating:.1f}", f"{interval} steps", f"{share:.1%}"]


def _train_by_command(command: Command, folder: Path) -> list[object]:
    """Train; MB that the process held when it announced its plan, at most, the difference, and what it announced."""
    process = subprocess.Popen(
        command, cwd=folder, env=os.environ | {"PYTHONUNBUFFERED": "1"}, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    held = announced = 0.0
    said: list[str] = []
    for line in process.stderr:
        said.append(line)
        if found := re.match(r"memory at most, in GiB: main memory ([\d.]+)", line):
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            held, announced = pages * os.sysconf("SC_PAGE_SIZE") / 2**20, float(found[1]) * 1024
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not announced:
        sys.exit(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{''.join(said[-20:])}")
    most = used.ru_maxrss / 1024
    return [f"{held:.0f}", f"{most:.0f}", f"{most - held:.0f}", f"{announced:.0f}"]
