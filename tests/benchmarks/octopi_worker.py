"""octopi at work: run by octopi's own Python, it does what lines of JSON tell it and answers in kind.

It uses octopi as the scripts of its users do and changes nothing in what it computes; it adds clocks, and copies of the
averaged weights as they come along.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from monai.losses import TverskyLoss
from octopi import workflows
from octopi.datasets.config import DataGeneratorConfig, set_seed
from octopi.models import common
from octopi.pytorch import trainer


@dataclass
class Watch:
    """The clocks of a training. It is stopped after `limit` seconds of training; about every `every` seconds the
    averaged weights are copied into `folder`."""

    limit: float
    every: float
    folder: Path
    seconds: float = 0.0
    validation_seconds: float = 0.0
    steps: int = 0
    epochs: int = 0
    points: list[dict[str, Any]] = field(default_factory=list)


class WatchedTrainer(trainer.ModelTrainer):
    """octopi's trainer under a watch."""

    watch: Watch

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.walltime_event = threading.Event()

    def train_update(self) -> float:
        """An epoch: its batches are drawn, and its steps taken."""
        watch = self.watch
        started = time.perf_counter()
        loss: float = super().train_update()
        watch.seconds += time.perf_counter() - started
        watch.epochs += 1
        watch.steps += len(self.train_loader)
        over = watch.seconds >= watch.limit
        latest = watch.points[-1]["seconds"] if watch.points else 0.0
        if over or watch.seconds - latest >= watch.every or watch.epochs == self.max_epochs:
            self._copy_weights()
        if over:
            self.walltime_event.set()
        return loss

    def _copy_weights(self) -> None:
        watch = self.watch
        path = watch.folder / f"{watch.steps:06d}.pth"
        with self.ema_handler.average_parameters():
            torch.save(self.model.state_dict(), path)
        watch.points.append(
            {
                "seconds": watch.seconds,
                "steps": watch.steps,
                "validation_seconds": watch.validation_seconds,
                "weights": str(path),
            }
        )

    def validate_update(self) -> Any:
        """A validation."""
        started = time.perf_counter()
        found = super().validate_update()
        self.watch.validation_seconds += time.perf_counter() - started
        return found


class Worker:
    """The tasks. `model`: octopi's model configuration; the rest as its `train` takes it."""

    def __init__(
        self,
        *,
        project: str,
        target: dict[str, str],
        tomogram: str,
        train: list[str],
        validate: list[str],
        model: dict[str, Any],
        crops: int,
        learning_rate: float,
        alpha: float,
        seed: int,
    ) -> None:
        set_seed(seed)
        self.data = DataGeneratorConfig(
            config=project, tomo_uris=[tomogram], trainRunIDs=train, validateRunIDs=validate, **target
        ).create_data_generator()
        self.model = {**model, "num_classes": self.data.Nclasses}
        self.crops = crops
        self.learning_rate = learning_rate
        self.loss = TverskyLoss(include_background=True, to_onehot_y=True, softmax=True, alpha=alpha, beta=1 - alpha)
        self._loader: Any = None

    @property
    def loader(self) -> Any:
        """The training batches, as octopi's trainer asks for them."""
        if self._loader is None:
            self._loader, _ = self.data.create(crop_size=self.model["dim_in"], num_samples=self.crops)
        return self._loader

    def sample(self, seconds: float) -> dict[str, float]:
        """Batches, in whole epochs."""
        return _repeat(lambda: sum(1 for _ in self.loader), seconds)

    def draw(self, seconds: float) -> dict[str, float]:
        """The same without a loader around it: crops of one tomogram after the other, in this process."""
        dataset = self.loader.dataset
        return _repeat(lambda: sum(bool(dataset[number]) for number in range(len(dataset))), seconds)

    def step(self, seconds: float, batches: int) -> dict[str, float]:
        """Steps of octopi's trainer on batches that were drawn before."""
        drawn: list[Any] = []
        while len(drawn) < batches:
            drawn += list(self.loader)
        network = common.get_model(self.model["architecture"]).build_model(self.model)
        # As octopi.workflows.train has them.
        optimiser = torch.optim.AdamW(network.parameters(), lr=self.learning_rate, weight_decay=1e-3)
        training = trainer.ModelTrainer(network, torch.device("cpu"), self.loss, None, optimiser)
        training.train_loader = drawn[:batches]

        def work() -> int:
            training.train_update()
            return batches

        work()
        return _repeat(work, seconds)

    def train(
        self, seed: int, weights: str, epochs: int, interval: int, limit: float, every: float, folder: str
    ) -> dict[str, Any]:
        """A training from given weights."""
        set_seed(seed)
        Path(folder).mkdir(parents=True)
        watch = WatchedTrainer.watch = Watch(limit, every, Path(folder))
        workflows.trainer.ModelTrainer = WatchedTrainer
        workflows.train(
            self.data,
            self.loss,
            batch_size=self.crops,
            model_config=dict(self.model),
            model_weights=weights,
            lr0=self.learning_rate,
            model_save_path=folder,
            best_metric="avg_f1",
            num_epochs=epochs,
            val_interval=interval,
        )
        return {"points": watch.points, "epochs": watch.epochs, "seconds": watch.seconds}


def _repeat(work: Callable[[], int], seconds: float) -> dict[str, float]:
    """Work for at least so many seconds; how much was done, and how long it took."""
    done, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds or not done:
        done += work()
    return {"done": done, "seconds": spent}


def main() -> None:
    """Answer requests until there are no more. What octopi prints goes to the log, with the errors."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    worker = Worker(**json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        request = json.loads(line)
        found = getattr(worker, request.pop("task"))(**request)
        print(json.dumps(found), file=answers)


if __name__ == "__main__":
    main()
