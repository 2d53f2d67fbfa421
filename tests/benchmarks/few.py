"""Few annotated tomograms: a training on one, two or four of them from scratch, and from a model pretrained on phantoms
of the objects' own density maps."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path

from measure import table
from training import CORES, TRAIN, Bench, set_up

from learning import KINDS, HeldOut, Point
from tomoscout.options.config import Config
from tomoscout.plan.plan import Plan

COUNTS = (1, 2, 4)
KIND = "noisy"


def few(folder: Path, maps: Path, seeds: int, steps: int) -> str:
    """F4 on tomograms held out after `steps` steps on few tomograms; the pretraining has twice as many. The phantoms of
    the pretraining have the maps in common with the tomograms, but no tomogram, and noise of a wide range."""
    phantom = {**KINDS[KIND]}
    phantom["maps"] = {name: str(maps.resolve() / f"{name}.mrc") for name in phantom["maps"]}
    rows: list[list[object]] = []
    with set_up(folder, phantom=phantom, with_octopi=False, validate_every=steps) as bench:
        held_out = HeldOut(bench, Plan(bench.config, bench.records).targets.classes)
        base = _pretrained(bench, phantom["maps"], 2 * steps)
        for count in COUNTS:
            starts: list[tuple[str, Path | None]] = [("from scratch", None), ("pretrained", base)]
            for name, start in starts:
                scores = [_score(bench, held_out, count, seed, steps, start) for seed in range(seeds)]
                rows.append([count, name, *_summary(scores)])
        rows.insert(0, [0, "pretrained", *_summary([_of_model(base, held_out, bench)])])
    columns = ["annotated tomograms", "", "F4", "range"]
    return table(f"Few annotated tomograms ({KIND}, {seeds} seeds, {steps} steps)", columns, rows)


def _summary(scores: Sequence[float]) -> list[object]:
    return [f"{statistics.mean(scores):.3f}", f"{min(scores):.3f}–{max(scores):.3f}"]


def _pretrained(bench: Bench, maps: dict[str, str], steps: int) -> Path:
    from tomoscout.stages.pretrain import run_pretrain

    values = bench.config.model_dump(mode="json", by_alias=True)
    values["pretrain"] = {"steps": steps, "phantom": {"maps": maps, "seed": 1}}
    folder = bench.folder / "models" / "pretrained"
    with (bench.folder / "train.log").open("a") as log, redirect_stderr(log):
        run_pretrain(Plan(Config.model_validate(values), bench.records, bench.folder), folder, CORES)
    return folder


def _score(bench: Bench, held_out: HeldOut, count: int, seed: int, steps: int, base: Path | None) -> float:
    from tomoscout.stages.train import run_train

    values = bench.config.model_dump(mode="json", by_alias=True)
    values["split"]["train"] = TRAIN[:count]
    name = f"{count}-{seed}-{'base' if base else 'scratch'}"
    tuned = {"base": str(base), "promote": "always", "learning_rate": 1e-3} if base else {}
    values["train"] |= {"seed": seed, "steps": steps, "name": name, **tuned}
    folder = bench.folder / "models" / name
    with (bench.folder / "train.log").open("a") as log, redirect_stderr(log):
        run_train(Plan(Config.model_validate(values), bench.records), folder, threads=CORES)
    return _of_model(folder, held_out, bench)


def _of_model(folder: Path, held_out: HeldOut, bench: Bench) -> float:
    """The mean F4 of a model, each class at its best threshold."""
    from safetensors.torch import load_file

    from tomoscout.learning.normalisation import standardise

    weights = load_file(folder / "weights.safetensors")
    scale = bench.config.targets.radius_scale
    return held_out.score(Point(0.0, 0, weights), scale, standardise).mean
