"""How well, and how soon, a training finds particles in tomograms held out: tomoscout with its defaults, a plain loop
and octopi, from the same weights, in equal seconds, on phantoms of several kinds."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import plain
from measure import table
from numpy.typing import NDArray
from peer import Octopi
from training import CORES, CROPS, PATCH, SCALE, SESSION, TEST, TRAIN, URI, USER, Bench, set_up, training_stage

from tomoscout.data.geometry import to_voxels
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
THEIR_INTERVAL = 10
"""Epochs between octopi's validations: its default."""

SHELL = "virus-like-particle"
MIXED = ["4v4r", "3j9i", "1u6g", "3gl1", "4v94"]
KEPT = ["2uv8", "3h84", "4cr2", "5mrc"]
"""Maps that no default was chosen on."""

KINDS: dict[str, dict[str, Any]] = {
    "shapes": {},
    "usual": {"shapes": [SHELL], "maps": MIXED},
    "noisy": {"shapes": [SHELL], "maps": MIXED, "signal_to_noise": 0.05},
    "crowded": {"shapes": [SHELL], "maps": MIXED, "particles": 40},
    "rare": {
        "shapes": [SHELL],
        "maps": MIXED,
        "particles": 14,
        "numbers": {"3j9i": 5},
        "absent": {"1u6g": 3},
        "signal_to_noise": 0.1,
    },
    "hollow": {"shapes": [SHELL, "apo-ferritin", "proteasome"], "maps": ["3j9i", "4v94"], "signal_to_noise": 0.08},
    "small": {"shapes": [], "maps": ["3qm1", "3gl1", "2cg9", "3cf3", "4v4r"], "particles": 14},
    "kept": {"shapes": [], "maps": KEPT, "signal_to_noise": 0.1},
    "kept noisy": {"shapes": [], "maps": KEPT, "signal_to_noise": 0.05},
}
"""Options of the phantom by kind; `maps` are names of MRC files. Without maps there is the first kind alone."""


@dataclass(frozen=True)
class Point:
    """Weights along a training: after so many seconds of training, validations not counted, and steps. `thresholds`:
    those of the last validation."""

    seconds: float
    steps: int
    weights: dict[str, torch.Tensor] | Path
    thresholds: Mapping[str, float] = field(default_factory=dict)


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
        """Train as the stage would, with a validation whenever weights are copied."""
        from tomoscout.learning.progression import Validation
        from tomoscout.learning.trainer import fit

        self.start = _copy(network)
        steps = 0
        resumed = 0.0

        def counted(step: int, *scores: Any) -> Any:
            nonlocal steps
            steps = step + 1
            return batches(step, *scores)

        def look(current: nn.Module) -> Validation:
            nonlocal resumed
            self.seconds += time.perf_counter() - resumed
            found = Validation(-math.inf, {}, {})
            latest = self.points[-1].seconds if self.points else 0.0
            if self.seconds - latest >= self.every or steps == options.steps:
                found = validate(current)
                self.points.append(Point(self.seconds, steps, _copy(current), found.details["thresholds"]))
            resumed = time.perf_counter()
            return found

        named.pop("report", None)
        resumed = time.perf_counter()
        fit(network, counted, loss, look, options, *given, validate_every=self.LOOK, **named)


def _copy(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


@dataclass(frozen=True)
class Score:
    """F4 on the tomograms held out, by class: at the best threshold of each, and at those chosen in validation."""

    best: Mapping[str, float]
    own: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Mean over the classes, each at its best threshold."""
        return statistics.mean(self.best.values())


class HeldOut:
    """The tomograms held out, and how well a network finds their particles."""

    def __init__(self, bench: Bench, classes: Sequence[TargetClass]) -> None:
        self.project = Project("phantom", bench.project)
        self.classes = classes
        self.network = bench.config.train.network
        self.tomograms = [self.project.read_tomogram(name, str(URI)) for name in TEST]
        self.truth = [self.picks(name) for name in TEST]

    def picks(self, run: str) -> dict[str, Picks]:
        """All particles of a run."""
        return {e.name: self.project.read_picks(run, Source(e.name, USER, SESSION)) for e in self.classes}

    def score(self, point: Point, scale: float, prepare: Callable[[NDArray[Any]], NDArray[Any]]) -> Score:
        """Particle F4 over these tomograms, one-to-one within half a radius. `scale`: of the spheres that the network
        learnt. `prepare` makes of a tomogram what it was trained on."""
        import torch

        from tomoscout.learning.prediction import Inference, predict
        from tomoscout.learning.tiles import InputSizes
        from tomoscout.networks import build_network

        weights = point.weights
        if isinstance(weights, Path):
            weights = torch.load(weights, weights_only=True)
        network = build_network(self.network, len(self.classes) + 1)
        network.load_state_dict(weights)
        classes = [TargetClass(e.name, e.label, e.radius, (e.radius or 0) * scale, e.sources) for e in self.classes]
        picks = [
            locate_picks(
                predict(
                    network,
                    prepare(tomogram),
                    Inference(InputSizes.of([self.network], 3), tomogram.shape, 0.25, torch.device("cpu")),
                ),
                classes,
                URI.voxel_spacing,
                Picking(),
            )
            for tomogram in self.tomograms
        ]
        found = {entry.name: self._at(picks, entry, point.thresholds.get(entry.name, 2.0)) for entry in classes}
        return Score({name: best for name, (best, _) in found.items()}, {name: own for name, (_, own) in found.items()})

    def _at(self, picks: Sequence[dict[str, Picks]], entry: TargetClass, threshold: float) -> tuple[float, float]:
        """F4 of a class at its best threshold, and at a given one."""
        assert entry.radius is not None
        curve = precision_recall(
            count_matches(
                found[entry.name].positions, found[entry.name].scores, truth[entry.name].positions, entry.radius / 2
            )
            for found, truth in zip(picks, self.truth, strict=True)
        )
        scores = curve.f(BETA)
        kept = int(np.count_nonzero(curve.thresholds >= threshold))
        return float(scores.max(initial=0.0)), float(scores[kept - 1]) if kept else 0.0


def normalise(tomogram: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean 0, standard deviation 1."""
    return ((tomogram - tomogram.mean(dtype=np.float64)) / tomogram.std(dtype=np.float64)).astype(np.float32)


@dataclass(frozen=True)
class Training:
    """A training that was scored along the way."""

    kind: str
    tool: str
    seed: int
    points: list[Point]
    scores: list[Score]

    @property
    def reached(self) -> float | None:
        """Seconds to the first point that is good enough."""
        pairs = zip(self.points, self.scores, strict=True)
        return next((point.seconds for point, score in pairs if score.mean >= ENOUGH), None)

    def row(self) -> list[object]:
        """Its line in the table."""
        last, final = self.points[-1], self.scores[-1]
        own = f"{statistics.mean(final.own.values()):.3f}" if last.thresholds else ""
        worst = min(final.best, key=lambda name: final.best[name])
        first = f"{self.reached:.0f}" if self.reached else ""
        return [
            self.kind,
            self.tool,
            self.seed,
            f"{last.seconds:.0f}",
            last.steps,
            f"{final.mean:.3f}",
            own,
            f"{final.best[worst]:.2f} {worst}",
            first,
        ]

    def curve(self) -> list[object]:
        """Its scores, second by second, and those of the classes at the end."""
        points = zip(self.points, self.scores, strict=True)
        classes = ", ".join(f"{name} {score:.3f}" for name, score in self.scores[-1].best.items())
        along = ", ".join(f"{point.seconds:.0f} s {score.mean:.2f}" for point, score in points)
        return [self.kind, self.tool, self.seed, classes, along]


def learning(
    folder: Path, maps: Path | None, kinds: Sequence[str], seeds: int, octopi_seeds: int, seconds: float, every: float
) -> str:
    """All trained for so many `seconds` from the same weights, and scored on tomograms held out about every `every`
    seconds of training. tomoscout's and octopi's schedules are made to end then."""
    trainings: list[Training] = []
    for kind in kinds or (KINDS if maps else ["shapes"]):
        place = folder / kind.replace(" ", "-")
        place.mkdir()
        options = {**KINDS[kind]}
        if names := options.pop("maps", []):
            if maps is None:
                sys.exit(f"learning: '{kind}' needs --maps, a folder with {', '.join(names)} (.mrc)")
            options["maps"] = {name: str(maps.resolve() / f"{name}.mrc") for name in names}
        with set_up(place, phantom=options, with_octopi=octopi_seeds > 0) as bench:
            trainings += _trainings(bench, kind, seeds, octopi_seeds, seconds, every)
    rows = [training.row() for training in trainings]
    columns = ["phantom", "", "seed", "s", "steps", "F4", "with own thresholds", "worst class", f"s to {ENOUGH}"]
    along = ["phantom", "", "seed", "classes", "along the way"]
    return "\n".join(
        [
            table(f"Particle F4 on {len(TEST)} tomograms held out, each class at its best threshold", columns, rows),
            table("Means of the seeds", ["phantom", "", "F4", "range", "with own thresholds"], _means(trainings)),
            table("The same in detail", along, [training.curve() for training in trainings]),
        ]
    )


def _means(trainings: Sequence[Training]) -> list[list[object]]:
    groups: dict[tuple[str, str], list[Training]] = {}
    for training in trainings:
        groups.setdefault((training.kind, training.tool), []).append(training)
    rows: list[list[object]] = []
    for (kind, tool), members in groups.items():
        scores = [training.scores[-1].mean for training in members]
        own = statistics.mean(statistics.mean(training.scores[-1].own.values()) for training in members)
        cells = f"{own:.3f}" if members[0].points[-1].thresholds else ""
        rows.append([kind, tool, f"{statistics.mean(scores):.3f}", f"{min(scores):.3f}–{max(scores):.3f}", cells])
    return rows


def _trainings(bench: Bench, kind: str, seeds: int, octopi_seeds: int, seconds: float, every: float) -> list[Training]:
    held_out = HeldOut(bench, Plan(bench.config, bench.records).targets.classes)
    rate = _seconds_per_step(bench)
    trainings = []
    for seed in range(seeds):
        ours, start = _train_ours(bench, seed, round(seconds / rate), every)
        found = {"tomoscout": ours, "plain loop": _train_plainly(bench, held_out, seed, start, seconds, every)}
        if seed < octopi_seeds:
            with bench.octopi() as theirs:
                found["octopi"] = _train_theirs(bench, theirs, seed, start, seconds, every)
        for tool, points in found.items():
            trainings.append(_scored(bench, kind, tool, seed, points, held_out))
    return trainings


def _seconds_per_step(bench: Bench) -> float:
    """Of tomoscout; the first steps warm up."""
    watch = Watch(every=0.0)
    training_stage(bench, bench.changed(name="brief", steps=40), watch.fit)
    first, last = watch.points[1], watch.points[-1]
    return (last.seconds - first.seconds) / (last.steps - first.steps)


def _train_ours(bench: Bench, seed: int, steps: int, every: float) -> tuple[list[Point], Path]:
    import torch

    watch = Watch(every)
    training_stage(bench, bench.changed(seed=seed, name=f"seed-{seed}", steps=steps), watch.fit)
    start = bench.folder / f"start-{seed}.pth"
    torch.save(watch.start, start)
    return watch.points, start


def _train_plainly(
    bench: Bench, held_out: HeldOut, seed: int, start: Path, seconds: float, every: float
) -> list[Point]:
    import torch

    from tomoscout.networks import build_network

    torch.set_num_threads(CORES)
    network = build_network(bench.config.train.network, len(held_out.classes) + 1)
    network.load_state_dict(torch.load(start, weights_only=True))
    tomograms = [normalise(held_out.project.read_tomogram(name, str(URI))) for name in TRAIN]
    places = [
        [to_voxels(picks.positions, URI.voxel_spacing) for picks in held_out.picks(name).values()] for name in TRAIN
    ]
    radii = [(entry.radius or 0.0) / URI.voxel_spacing for entry in held_out.classes]
    limits = {"seconds": seconds, "every": every, "crops": CROPS, "patch": PATCH, "seed": seed}
    return [Point(*found) for found in plain.train(network, tomograms, places, radii, **limits)]


def _train_theirs(bench: Bench, theirs: Octopi, seed: int, start: Path, seconds: float, every: float) -> list[Point]:
    brief = {"seed": 0, "weights": str(start), "interval": 100, "limit": math.inf, "every": 0.0}
    points = theirs.ask("train", **brief, epochs=4, folder=str(bench.folder / f"octopi-brief-{seed}"))["points"]
    # The first epoch warms up.
    epoch = (points[-1]["seconds"] - points[0]["seconds"]) / (len(points) - 1)
    found = theirs.ask(
        "train",
        seed=seed,
        weights=str(start),
        epochs=max(2, round(seconds / epoch)),
        interval=THEIR_INTERVAL,
        limit=math.inf,
        every=every,
        folder=str(bench.folder / f"octopi-{seed}"),
    )
    return [Point(point["seconds"], point["steps"], Path(point["weights"])) for point in found["points"]]


def _scored(bench: Bench, kind: str, tool: str, seed: int, points: list[Point], held_out: HeldOut) -> Training:
    from tomoscout.learning.normalisation import standardise

    scales = {"tomoscout": bench.config.targets.radius_scale, "plain loop": plain.SCALE, "octopi": SCALE}
    prepare = standardise if tool == "tomoscout" else normalise
    training = Training(kind, tool, seed, points, [held_out.score(point, scales[tool], prepare) for point in points])
    print(" | ".join(map(str, training.row())), file=sys.stderr, flush=True)
    return training
