"""A task that the package does not know: two classes in images of two channels, all the way to a search.

One channel shows where something is, the other of which kind it is: neither is enough alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from tomoscout.explore.machine import misfit_of
from tomoscout.explore.options import Explore
from tomoscout.explore.records import trial_folder
from tomoscout.explore.start import start, suggest
from tomoscout.explore.study import Study
from tomoscout.explore.trial import run_trial
from tomoscout.learning.crops import crop_batches
from tomoscout.learning.losses.combined import build_loss
from tomoscout.learning.normalisation import standardise
from tomoscout.learning.options import ClassTraining, Training
from tomoscout.learning.precision import chosen_precision
from tomoscout.learning.prediction import Inference, predict
from tomoscout.learning.progression import Outcome, Progression, Validation
from tomoscout.learning.readout import argmax_labels
from tomoscout.learning.sampling import Centres, largest_jitter
from tomoscout.learning.task import Task
from tomoscout.learning.tiles import InputSizes
from tomoscout.learning.trainer import Batches
from tomoscout.learning.training import Job, plan_of, resolve_options, train_network
from tomoscout.learning.validation import Validator
from tomoscout.learning.volumes import Storage, VolumeSource, ignored_label, labelled_volumes
from tomoscout.models.base import read_base
from tomoscout.models.folder import Described, Model, load_network, load_weights
from tomoscout.tracking.options import Tracking
from tomoscout.tracking.tracker import Tracker

torch.set_num_threads(1)
CPU = torch.device("cpu")
CLASSES = ("bright", "dark")
SIZE = (48, 56)


class SpotOptions(ClassTraining):
    """Spots are found in two dimensions."""

    DIMENSIONS = 2


class _SpotForm(Described):
    threshold: float


@dataclass(frozen=True)
class SpotModel(Model):
    """What a model of spots keeps."""

    HEAD = "spots"
    FORM = _SpotForm

    threshold: float

    @property
    def dimensions(self) -> int:
        return 2

    @property
    def channels(self) -> int:
        return 2

    @property
    def class_names(self) -> tuple[str, ...]:
        return CLASSES

    def described(self) -> dict[str, Any]:
        return {"normalisation": self.NORMALISATION, "threshold": self.threshold}

    @classmethod
    def from_described(cls, common: Mapping[str, Any], described: Any) -> Self:
        return cls(**common, threshold=described.threshold)


def image(seed: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """An image (2, y, x) and its labels (y, x)."""
    random = np.random.default_rng(seed)
    labels = np.zeros(SIZE, dtype=np.uint8)
    rows, columns = np.indices(SIZE)
    for number in range(10):
        y, x = random.integers(4, SIZE[0] - 4), random.integers(4, SIZE[1] - 4)
        labels[(rows - y) ** 2 + (columns - x) ** 2 <= 9] = 1 + number % 2
    kind = np.where(labels == 1, 1.0, np.where(labels == 2, -1.0, random.choice([-1.0, 1.0], SIZE)))
    channels = np.stack([(labels > 0).astype(float), kind]) + random.normal(0, 0.2, (2, *SIZE))
    return channels.astype(np.float32), labels


class Spots(Task):
    """Every voxel gets its class; scored by the Dice coefficient."""

    metric = "Dice"
    class_names = CLASSES
    channels = 2
    tile = (32, 32)

    def __init__(self, options: SpotOptions, training: Sequence[int] = (1, 2, 3), validation: Sequence[int] = (4,)):
        self.options = options
        self.training, self.validation = training, [image(seed) for seed in validation]
        self.training_shapes = [SIZE for _ in training]
        self.validation_shapes = [SIZE for _ in validation]

    def loss(self) -> nn.Module:
        weights = torch.ones(len(CLASSES) + 1)
        return build_loss(self.options.loss, weights, weights, ignored_label(len(CLASSES)))

    def batches(self, options: Training, storage: Storage) -> Batches:
        sources = [VolumeSource(f"image {seed}", str(seed), lambda seed=seed: image(seed)) for seed in self.training]
        volumes = labelled_volumes(sources, options.crop, storage)
        centres = {}
        for label, name in enumerate(CLASSES, 1):
            places = [np.argwhere(volume.labels.numpy() == label) for volume in volumes]
            numbered = [np.column_stack([np.full(len(found), n), found]) for n, found in enumerate(places)]
            centres[name] = Centres(np.concatenate(numbered), largest_jitter(options.crop, 3))
        return crop_batches(volumes, centres, options, storage.device)

    def validation_volumes(self) -> list[NDArray[np.float32]]:
        return [np.stack([standardise(channel) for channel in channels]) for channels, _ in self.validation]

    def measure(self, predictions: Iterable[NDArray[np.uint8]]) -> Validation:
        every = list(predictions)
        scores = {}
        for label, name in enumerate(CLASSES, 1):
            pairs = [
                (argmax_labels(found) == label, labels == label)
                for found, (_, labels) in zip(every, self.validation, strict=True)
            ]
            shared = sum(int((found & truth).sum()) for found, truth in pairs)
            scores[name] = 2 * shared / max(1, sum(int(found.sum() + truth.sum()) for found, truth in pairs))
        return Validation(float(np.mean(list(scores.values()))), scores, {"scores": scores, "threshold": 0.5})

    def model(self, common: Mapping[str, Any], options: Training, details: Mapping[str, Any]) -> SpotModel:
        return SpotModel(**common, threshold=details["threshold"])


OPTIONS: dict[str, Any] = {
    "device": "cpu",
    "network": {"channels": [4, 8], "strides": [2]},
    "patch": [24, 24],
    "steps": 60,
    "batch_size": 4,
    "validate_every": 20,
    "learning_rate": 0.02,
    "augmentation": {"tilt": 0},
}


def train(
    folder: Path, watch: Any = lambda progression: None, name: str = "spots", **changes: Any
) -> tuple[Outcome, SpotOptions]:
    asked = SpotOptions(**{**OPTIONS, **changes})
    task = Spots(asked)
    base = read_base(asked, SpotModel) if asked.base else None
    options = resolve_options(asked, base, task)
    job = Job(
        task,
        options,
        name,
        folder,
        "fingerprint",
        "kind",
        lambda facts: Tracker(folder, Tracking(enabled=False), "", dict(facts)),
        base,
    )
    return train_network(job, watch), options


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spots")
    train(folder)
    return folder


def test_it_learns_what_neither_channel_tells_alone(folder: Path) -> None:
    model = SpotModel.read(folder)
    assert model.made_from["score"] > 0.8
    assert (model.name, model.threshold) == ("spots", 0.5)


def test_a_training_that_is_stopped_ends_the_same(folder: Path, tmp_path: Path) -> None:
    def stop(progression: Progression) -> None:
        if progression.step == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, stop, checkpoint_seconds=0)
    assert (tmp_path / "checkpoint.pt").exists()
    assert not (tmp_path / "model.yaml").exists()
    train(tmp_path, checkpoint_seconds=0)
    for name in ("model.yaml", "weights.safetensors", "metrics.csv", "results.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_volumes_in_files_give_the_same_model(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tomoscout.learning import training

    plan_training = training.plan_training

    def plan(*arguments: Any) -> Any:
        made = plan_training(*arguments)
        return replace(made, storage=replace(made.storage, tier="files"))

    monkeypatch.setattr(training, "plan_training", plan)
    train(tmp_path)
    assert (tmp_path / "weights.safetensors").read_bytes() == (folder / "weights.safetensors").read_bytes()


def test_the_memory_plan_counts_both_channels(tmp_path: Path) -> None:
    options = resolve_options(SpotOptions(**OPTIONS), None, Spots(SpotOptions(**OPTIONS)))
    _, _, memory = plan_of(Spots(options), options, CPU, tmp_path)
    held = next(use for use in memory.uses() if use.what == "3 training tomograms")
    # Two channels of two bytes and a label of one.
    assert held.size == 3 * SIZE[0] * SIZE[1] * 5
    one_channel = Spots(options)
    one_channel.channels = 1
    _, _, smaller = plan_of(one_channel, options, CPU, tmp_path)
    for what in ("validation tomograms", "a step of 4 crops", "predictions of validation"):
        sizes = [next(use.size for use in made.uses() if what in use.what) for made in (memory, smaller)]
        assert sizes[0] > sizes[1], what


def test_the_model_folder_is_applied_by_tiles(folder: Path) -> None:
    model = SpotModel.read(folder)
    network = load_network(folder, model, CPU)
    sizes = InputSizes.of([model.network], model.dimensions)
    channels, labels = image(9)
    volume = np.stack([standardise(channel) for channel in channels])
    found = [
        predict(network, volume, Inference(sizes, tile, 0.5, CPU, flips=flips))
        for tile in (SIZE, (24, 24))
        for flips in (1, 4)
    ]
    assert all(probabilities.shape == (2, *SIZE) for probabilities in found)
    for probabilities in found:
        assert (argmax_labels(probabilities) == labels).mean() > 0.9
    assert not np.array_equal(found[0], found[2])


def test_a_model_of_another_task_is_refused(folder: Path) -> None:
    from tomoscout.machine.errors import TomoscoutError
    from tomoscout.tasks.picking.model import PickingModel

    with pytest.raises(TomoscoutError, match=r"model\.yaml: found .*'head': 'spots'.*, expected .*'head': 'picking'"):
        PickingModel.read(folder)


def test_a_fine_tuning_starts_from_its_weights(folder: Path, tmp_path: Path) -> None:
    started, _ = train(tmp_path, base=str(folder), steps=1, learning_rate=1e-9, augmentation={"tilt": 0})
    assert started.progression.base_score == pytest.approx(SpotModel.read(folder).made_from["score"])
    weights, before = load_weights(tmp_path, SpotModel.read(tmp_path)), load_weights(folder, SpotModel.read(folder))
    assert all(torch.allclose(weights[name].float(), before[name].float(), atol=1e-6) for name in before)


def test_a_validator_predicts_every_volume(folder: Path) -> None:
    options = resolve_options(SpotOptions(**OPTIONS), None, Spots(SpotOptions(**OPTIONS)))
    model = SpotModel.read(folder)
    validator = Validator(Spots(options), model.network, 2, (32, 32), CPU, chosen_precision("auto", CPU))
    assert validator(load_network(folder, model, CPU)).score == pytest.approx(model.made_from["score"])


def test_three_trials_of_a_search(tmp_path: Path) -> None:
    shared = SpotOptions(**{**OPTIONS, "steps": 12, "validate_every": None, "gpu_memory_gb": None})
    explore = Explore(
        trials=3,
        window=1,
        startup_trials=1,
        threads=1,
        validations=2,
        networks={"UNet": {"width": {"choices": [4, 8]}, "levels": 2, "bottleneck_levels": 0}},
        space={"patch": {"choices": [16, 24]}, "augmentation.tilt": 0.0, "augmentation.rotate": 5.0},
    )
    study = Study.of(explore, shared, Spots(shared).training_shapes, "training")
    folder = tmp_path / study.name
    start(study, folder)
    results = []
    for number in range(3):
        ask = suggest(study, folder, number, 3, lambda: misfit_of(shared, Spots))
        assert ask.options(trial_folder(folder, number), SpotOptions).DIMENSIONS == 2

        def run(options: Training, place: Path, watch: Any) -> Outcome:
            return train(place, watch, **{**options.model_dump(), "device": "cpu"})[0]

        results.append(run_trial(lambda: study, folder, number, run))
    assert [result.state for result in results[:1]] == ["COMPLETE"]
    assert {len(result.params) > 0 for result in results[1:]} == {True}
    for result in results:
        if result.state == "COMPLETE":
            assert SpotModel.read(trial_folder(folder, result.number)).made_from["score"] == result.value
    assert Study.read(folder, SpotOptions) == study
