"""stardist at work: run by a Python that has it, it trains as its example notebook does and writes labels of the test
images."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from csbdeep.utils import normalize
from skimage.io import imread
from stardist.models import Config2D, StarDist2D

THREADS = 2


def augmented(image: Any, labels: Any) -> tuple[Any, Any]:
    """Turned, mirrored and of another brightness, as in stardist's example."""
    turns, mirror = np.random.randint(4), np.random.rand() < 0.5
    image, labels = np.rot90(image, turns), np.rot90(labels, turns)
    if mirror:
        image, labels = image[::-1], labels[::-1]
    return image * np.random.uniform(0.6, 2) + np.random.uniform(-0.2, 0.2), labels


class Limit(tf.keras.callbacks.Callback):  # type: ignore[misc]
    """Ends a training after so many seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.steps, self.started = seconds, 0, time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Count a step."""
        self.steps += 1
        if time.perf_counter() - self.started > self.seconds:
            self.model.stop_training = True


def main() -> None:
    """Do what the argument asks for, as JSON."""
    asked = json.loads(sys.argv[1])
    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    np.random.seed(asked["seed"])
    tf.keras.utils.set_random_seed(asked["seed"])
    folder, place = Path(asked["folder"]), Path(asked["place"])

    def image(name: str) -> Any:
        [path] = (folder / "images").glob(f"{name}.*")
        values = imread(path)
        return normalize((values if values.ndim == 2 else values[..., 0]).astype(np.float32), 1, 99.8)

    def labels(name: str) -> Any:
        [path] = (folder / "labels").glob(f"{name}.*")
        return imread(path).astype(np.int32)

    training, validation = ([(image(n), labels(n)) for n in asked[part]] for part in ("train", "validate"))
    config = Config2D(
        n_rays=32, grid=(2, 2), n_channel_in=1, train_patch_size=(128, 128), train_batch_size=4, train_tensorboard=False
    )
    model = StarDist2D(config, name="model", basedir=str(place))
    model.prepare_for_training()
    limit = Limit(asked["seconds"])
    model.callbacks.append(limit)
    pairs = [list(part) for part in zip(*training, strict=True)]
    checked = [list(part) for part in zip(*validation, strict=True)]
    model.train(*pairs, validation_data=checked, augmenter=augmented, epochs=10_000, steps_per_epoch=100)
    taken = time.perf_counter() - limit.started
    model.optimize_thresholds(*checked)
    for name in asked["test"]:
        np.save(place / f"{name}.npy", model.predict_instances(image(name))[0])
    print(json.dumps({"steps": limit.steps, "seconds": taken}))


if __name__ == "__main__":
    main()
