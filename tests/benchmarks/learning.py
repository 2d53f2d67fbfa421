"""How soon a training finds particles in tomograms held out, beside octopi's from the same weights."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from measure import spread, table
from numpy.typing import NDArray
from peer import Octopi
from training import SESSION, TEST, URI, USER, Bench, set_up, training_stage

from tomoscout.data.picks import Picks
from tomoscout.data.project import Project
from tomoscout.options.names import Source
from tomoscout.plan.classes import TargetClass
from tomoscout.plan.plan import Plan
from tomoscout.tasks.picking.decoding import locate_picks
from tomoscout.tasks.picking.matching import count_matches, precision_recall
from tomoscout.tasks.picking.options import Picking

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tomoscout.learning.progression import Validation

BETA, ENOUGH = 4.0, 0.85
PATIENCE = 3
"""How many times as long as tomoscout octopi may train."""

THEIR_INTERVAL = 10
"""Epochs between octopi's validations: its default."""


@dataclass(frozen=True)
class Point:
    """Averaged weights along a training: after so many seconds of training, validations not counted, and steps."""

    seconds: float
    steps: int
    validation_seconds: float
    weights: dict[str, torch.Tensor] | Path


@dataclass
class Watch:
    """Stands in for the training loop of the stage: runs it with a clock, and copies the averaged weights about every
    `every` seconds. Copies and validations do not count as training."""

    LOOK = 5
    """Steps between looks at the clock."""

    every: float
    start: dict[str, torch.Tensor] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    seconds: float = 0.0
    validation_seconds: float = 0.0

    def fit(
        self,
        network: nn.Module,
        batches: Callable[..., Any],
        loss: nn.Module,
        validate: Callable[[nn.Module], Validation],
        options: Any,
        *given: Any,
        validate_every: int,
        **named: Any,
    ) -> None:
        """Train as the stage would, with its validations at the steps it asks for."""
        from tomoscout.learning.progression import Validation
        from tomoscout.learning.trainer import fit

        self.start = _copy(network)
        steps = validations = 0
        resumed = 0.0

        def counted(step: int, *scores: Any) -> Any:
            nonlocal steps
            steps = step + 1
            return batches(step, *scores)

        def look(current: nn.Module) -> Validation:
            nonlocal validations, resumed
            paused = time.perf_counter()
            self.seconds += paused - resumed
            found = Validation(-math.inf, {}, {})
            last = steps == options.steps
            if steps // validate_every > validations or last:
                validations += 1
                found = validate(current)
                self.validation_seconds += time.perf_counter() - paused
            latest = self.points[-1].seconds if self.points else 0.0
            if self.seconds - latest >= self.every or last:
                self.points.append(Point(self.seconds, steps, self.validation_seconds, _copy(current)))
            resumed = time.perf_counter()
            return found

        named.pop("report", None)
        resumed = time.perf_counter()
        fit(network, counted, loss, look, options, *given, validate_every=self.LOOK, **named)


def _copy(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


class HeldOut:
    """The tomograms held out, and how well a network finds their particles."""

    def __init__(self, bench: Bench, classes: Sequence[TargetClass]) -> None:
        project = Project("phantom", bench.project)
        self.classes = classes
        self.network = bench.config.train.network
        self.tomograms = [project.read_tomogram(name, str(URI)) for name in TEST]
        self.truth: list[dict[str, Picks]] = [
            {entry.name: project.read_picks(name, Source(entry.name, USER, SESSION)) for entry in classes}
            for name in TEST
        ]

    def score(self, weights: dict[str, torch.Tensor], prepare: Callable[[NDArray[Any]], NDArray[Any]]) -> float:
        """Particle F4 over these tomograms: the mean of the classes, each at its best threshold; one-to-one within half
        a radius. `prepare` makes of a tomogram what the network was trained on."""
        import torch

        from tomoscout.learning.tiles import InputSizes, predict
        from tomoscout.networks import build_network

        network = build_network(self.network, len(self.classes) + 1)
        network.load_state_dict(weights)
        picks = [
            locate_picks(
                predict(
                    network,
                    prepare(tomogram),
                    sizes=InputSizes.of([self.network], 3),
                    tile=tomogram.shape,
                    overlap=0.25,
                    flips=1,
                    device=torch.device("cpu"),
                ),
                self.classes,
                URI.voxel_spacing,
                Picking(),
            )
            for tomogram in self.tomograms
        ]
        return statistics.mean(self._best(picks, entry) for entry in self.classes)

    def _best(self, picks: Sequence[dict[str, Picks]], entry: TargetClass) -> float:
        assert entry.radius is not None
        curve = precision_recall(
            count_matches(
                found[entry.name].positions, found[entry.name].scores, truth[entry.name].positions, entry.radius / 2
            )
            for found, truth in zip(picks, self.truth, strict=True)
        )
        return float(curve.f(BETA).max(initial=0.0))


def normalise(tomogram: NDArray[np.float32]) -> NDArray[np.float32]:
    """As octopi prepares a tomogram: mean 0, standard deviation 1."""
    return ((tomogram - tomogram.mean(dtype=np.float64)) / tomogram.std(dtype=np.float64)).astype(np.float32)


@dataclass(frozen=True)
class Training:
    """A training that was scored along the way."""

    tool: str
    seed: int
    points: list[Point]
    scores: list[float]

    @property
    def reached(self) -> Point | None:
        """The first point that is good enough."""
        return next((p for p, score in zip(self.points, self.scores, strict=True) if score >= ENOUGH), None)

    def row(self) -> list[object]:
        """Its line in the table."""
        first, last = self.reached, self.points[-1]
        best = max(self.scores)
        return [
            self.tool,
            self.seed,
            f"{first.seconds:.0f}" if first else f"not in {last.seconds:.0f}",
            first.steps if first else f"not in {last.steps}",
            f"{best:.3f} at {self.points[self.scores.index(best)].seconds:.0f} s",
            f"{last.seconds / last.steps:.3f}",
            f"{last.validation_seconds:.1f}",
        ]

    def curve(self) -> list[object]:
        """Its scores, second by second."""
        points = zip(self.points, self.scores, strict=True)
        return [self.tool, self.seed, ", ".join(f"{point.seconds:.0f} s {score:.2f}" for point, score in points)]


def learning(folder: Path, seeds: int, octopi_seeds: int, steps: int, seconds: float, epochs: int | None) -> str:
    """Both trained from the same weights, and scored on tomograms held out about every `seconds` of training.

    octopi may train three times as long as tomoscout took to get there, on a schedule of as many `epochs` as that
    makes, unless they are given.
    """
    trainings: list[Training] = []
    with set_up(folder, steps=steps) as bench, bench.octopi() as theirs:
        held_out = HeldOut(bench, Plan(bench.config, bench.records).targets.classes)
        epoch = 0.0
        for seed in range(seeds):
            ours, start = _train_ours(bench, held_out, seed, seconds)
            trainings.append(ours)
            if seed < octopi_seeds:
                limit = PATIENCE * (ours.reached or ours.points[-1]).seconds
                epoch = epoch or _seconds_per_epoch(bench, theirs, start)
                planned = epochs or max(2, round(limit / epoch))
                trainings.append(_train_theirs(bench, theirs, held_out, seed, start, planned, limit, seconds))
    columns = ["", "seed", f"seconds to F4 {ENOUGH}", "steps", "best F4", "s per step", "s of validation besides"]
    title = f"Particle F4 on {len(TEST)} tomograms held out"
    return "\n".join(
        [
            table(title, columns, [training.row() for training in trainings]),
            _verdict(trainings),
            table("The same along the way", ["", "seed", "F4"], [training.curve() for training in trainings]),
        ]
    )


def _train_ours(bench: Bench, held_out: HeldOut, seed: int, every: float) -> tuple[Training, Path]:
    import torch

    from tomoscout.learning.normalisation import standardise

    watch = Watch(every)
    training_stage(bench, bench.changed(seed=seed, name=f"seed-{seed}"), watch.fit)
    start = bench.folder / f"start-{seed}.pth"
    torch.save(watch.start, start)
    return _scored("tomoscout", seed, watch.points, held_out, standardise), start


def _seconds_per_epoch(bench: Bench, theirs: Octopi, start: Path) -> float:
    """Of octopi; the first epoch warms up."""
    brief = {"seed": 0, "weights": str(start), "interval": 100, "limit": math.inf, "every": 0.0}
    found = theirs.ask("train", **brief, epochs=4, folder=str(bench.folder / "octopi-brief"))
    points = found["points"]
    return (points[-1]["seconds"] - points[0]["seconds"]) / (len(points) - 1)


def _train_theirs(
    bench: Bench, theirs: Octopi, held_out: HeldOut, seed: int, start: Path, epochs: int, limit: float, every: float
) -> Training:
    found = theirs.ask(
        "train",
        seed=seed,
        weights=str(start),
        epochs=epochs,
        interval=THEIR_INTERVAL,
        limit=limit,
        every=every,
        folder=str(bench.folder / f"octopi-{seed}"),
    )
    points = [Point(**{**point, "weights": Path(point["weights"])}) for point in found["points"]]
    return _scored(f"octopi, {epochs} epochs", seed, points, held_out, normalise)


def _scored(
    tool: str, seed: int, points: list[Point], held_out: HeldOut, prepare: Callable[[NDArray[Any]], NDArray[Any]]
) -> Training:
    import torch

    scores = []
    for point in points:
        weights = point.weights
        if isinstance(weights, Path):
            weights = torch.load(weights, weights_only=True)
        scores.append(held_out.score(weights, prepare))
    training = Training(tool, seed, points, scores)
    print(" | ".join(map(str, training.row())), file=sys.stderr)
    return training


def _verdict(trainings: Sequence[Training]) -> str:
    """How the two compare, in a sentence or two."""
    ours = [training for training in trainings if training.tool == "tomoscout"]
    theirs = {training.seed: training for training in trainings if training.tool != "tomoscout"}
    times = [training.reached.seconds for training in ours if training.reached]
    text = f"tomoscout: {len(times)} of {len(ours)} trainings reach {ENOUGH}"
    text += f", after {spread(times, 0)} s." if times else "."
    for training in ours:
        if (first := training.reached) and training.seed in theirs:
            other = theirs[training.seed]
            there = other.reached
            least = there.seconds if there else other.points[-1].seconds
            share = f"{least / first.seconds:.1f} times as long"
            text += f" octopi with seed {training.seed}: " + (share if there else f"not there in {share}") + "."
    return text + "\n"
