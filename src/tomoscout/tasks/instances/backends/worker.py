"""StarDist and Cellpose at work. This file is run by the Python of an environment that has the package, and neither
tomoscout nor its other packages.

    worker.py PACKAGE train FOLDER     trains on the images in FOLDER as its job.json says, into FOLDER/model
    worker.py PACKAGE predict MODEL DEVICE THREADS
                                       answers images with labels: reads a line with the image's shape (channels, y, x)
                                       and its float32 values, writes int32 labels (y, x)

A training tells what it has done in lines of JSON: the rows of its history, then facts.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

MISSING = 69
"""Exit code where the package is not there (EX_UNAVAILABLE of sysexits.h)."""

_CACHED = 2**26
"""Pixels of all training images up to which StarDist may keep lists of where crops can lie: 16 bytes each."""
_TILE = 1024
"""Pixels along a side that are predicted at once."""

Tell = Callable[[dict[str, Any]], None]
Predict = Callable[[Any], Any]


class State:
    """What a restarted training goes on from: a file that is replaced at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        start: dict[str, Any] = {"epoch": 0, "rows": []}
        self.values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else start

    def write(self, **values: Any) -> None:
        """Replace some of the values."""
        self.values.update(values)
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(self.values), encoding="utf-8")
        new.replace(self._path)


def load(folder: Path, part: str) -> tuple[list[Any], list[Any]]:
    """Images (channels, y, x) and labels (y, x) of a part, not read before they are needed."""
    files = sorted(folder.glob(f"{part}_*_image.npy"))
    labels = [file.with_name(file.name.replace("_image", "_labels")) for file in files]
    return [np.load(file, mmap_mode="r") for file in files], [np.load(file, mmap_mode="r") for file in labels]


def train_stardist(job: dict[str, Any], folder: Path, tell: Tell) -> None:
    """Train StarDist. What a batch holds follows from the seed and its number, and the state of the optimiser and of
    the callbacks is kept after each epoch: a restarted training ends with the same weights."""
    import tensorflow as tf
    from stardist.models import Config2D, StarDist2D, model2d

    tf.config.threading.set_intra_op_parallelism_threads(job["threads"])
    if job["device"] == "cpu":
        tf.config.set_visible_devices([], "GPU")
    tf.keras.utils.set_random_seed(job["seed"])
    tf.config.experimental.enable_op_determinism()
    images, labels = load(folder, "train")
    config = Config2D(
        axes="YXC" if job["channels"] > 1 else "YX",
        n_channel_in=job["channels"],
        n_rays=job["rays"],
        grid=(2, 2),
        train_patch_size=job["patch"],
        train_batch_size=job["batch_size"],
        train_learning_rate=job["learning_rate"],
        train_epochs=job["epochs"],
        train_steps_per_epoch=job["steps_per_epoch"],
        train_sample_cache=sum(map(np.size, labels)) <= _CACHED,
        train_checkpoint_epoch=None,
        train_tensorboard=False,
    )
    model = StarDist2D(config, name="model", basedir=str(folder))
    model.prepare_for_training()
    state = State(folder / "state.json")
    first = state.values["epoch"]

    class Batches(model2d.StarDistData2D):  # type: ignore[misc]
        """Batches that do not depend on those before."""

        def __iter__(self) -> Any:
            return (self[number] for number in range(first * job["steps_per_epoch"], len(self)))

        def __getitem__(self, number: int) -> Any:
            np.random.seed([job["seed"], number])
            return super().__getitem__(number)

        def _index(self, loop: int) -> Any:
            return np.random.RandomState([job["seed"], loop]).permutation(self.data_size)

    class Keep(tf.keras.callbacks.Callback):  # type: ignore[misc]
        """Keeps what a restart needs, and tells of each epoch."""

        remembered = ("best", "wait", "cooldown_counter")

        def on_train_begin(self, logs: Any = None) -> None:
            # The callbacks before this one have begun anew.
            for callback, values in zip(model.callbacks, state.values.get("callbacks", []), strict=False):
                vars(callback).update(values)

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            rate = float(self.model.optimizer.learning_rate)
            step = (epoch + 1) * job["steps_per_epoch"]
            row = {
                "step": step,
                "loss": float(logs["loss"]),
                "learning_rate": rate,
                "val_loss": float(logs["val_loss"]),
            }
            file = folder / f"{epoch + 1:06d}.weights.h5"
            self.model.save_weights(str(file))
            callbacks = [
                {
                    name: float(value)
                    for name, value in vars(callback).items()
                    if name in self.remembered and value is not None
                }
                for callback in model.callbacks[:-1]
            ]
            state.write(epoch=epoch + 1, rows=[*state.values["rows"], row], callbacks=callbacks)
            for old in folder.glob("*.weights.h5"):
                if old != file:
                    old.unlink()
            tell({"rows": [row]})

    # `train` makes its batches by this name, and takes none that are made.
    model2d.StarDistData2D = Batches
    model.callbacks.append(Keep())
    tell({"rows": state.values["rows"]})
    network = model.keras_model
    if first:
        network.optimizer.build(network.trainable_variables)
        network.load_weights(str(folder / f"{first:06d}.weights.h5"))
        # As Keras' own callback for restarts sets it.
        network._initial_epoch = first
    chosen, annotated = load(folder, "validate")
    pairs = [_padded(*pair, job["patch"]) for pair in zip(images, labels, strict=True)]
    checked = [_padded(*pair, job["patch"]) for pair in zip(chosen, annotated, strict=True)]
    if first < job["epochs"]:
        model.train(
            *_columns(pairs),
            validation_data=_columns(checked),
            augmenter=lambda image, label: _augmented(image, label, job["augmentation"]),
        )
    model.load_weights("weights_best.h5")
    model.optimize_thresholds([_channels_last(image) for image in chosen], [np.asarray(label) for label in annotated])
    versions = {"stardist": version("stardist"), "tensorflow": tf.__version__, "numpy": np.__version__}
    tell({"facts": {"versions": versions}})


def _columns(pairs: list[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    return [image for image, _ in pairs], [labels for _, labels in pairs]


def _channels_last(image: Any) -> Any:
    """(y, x) of one channel, (y, x, channels) of several."""
    return image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)


def _padded(image: Any, labels: Any, patch: list[int]) -> tuple[Any, Any]:
    """An image and its labels, not smaller than a crop. Added pixels have the label -1, which StarDist's loss leaves
    out."""
    missing = [(0, max(0, wanted - size)) for size, wanted in zip(labels.shape, patch, strict=True)]
    if any(after for _, after in missing):
        image, labels = np.pad(image, [(0, 0), *missing]), np.pad(labels, missing, constant_values=-1)
    return _channels_last(image), labels


def _augmented(image: Any, labels: Any, options: dict[str, Any]) -> tuple[Any, Any]:
    """A crop mirrored, turned by quarters, and with other intensities and noise, as the options have it."""
    if options["flip"]:
        for axis in (0, 1):
            if np.random.rand() < 0.5:
                image, labels = np.flip(image, axis), np.flip(labels, axis)
    if options["rotate90"]:
        turns = np.random.randint(4)
        image, labels = np.rot90(image, turns), np.rot90(labels, turns)
    if np.random.rand() < options["probability"]:
        scale, shift = options["intensity_scale"], options["intensity_shift"]
        image = image * np.random.uniform(1 - scale, 1 + scale) + np.random.uniform(-shift, shift)
    if np.random.rand() < options["probability"]:
        image = image + np.random.uniform(0, options["noise"]) * np.random.standard_normal(image.shape)
    return image.astype(np.float32), labels


def predict_stardist(folder: Path, device: str, threads: int) -> Predict:
    """StarDist's model in a folder, as a function from images to labels."""
    import tensorflow as tf
    from stardist.models import StarDist2D

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    if device == "cpu":
        tf.config.set_visible_devices([], "GPU")
    model = StarDist2D(None, name=folder.name, basedir=str(folder.parent))

    def predict(image: Any) -> Any:
        seen = _channels_last(image)
        tiles = [math.ceil(size / _TILE) for size in image.shape[1:]] + [1] * (seen.ndim - 2)
        return model.predict_instances(seen, n_tiles=tiles, show_tile_progress=False)[0]

    return predict


def train_cellpose(job: dict[str, Any], folder: Path, tell: Tell) -> None:
    """Train Cellpose. A restarted training goes on from the weights of the last epoch, with a new optimiser and
    schedule: Cellpose keeps neither."""
    import torch
    from cellpose import models, train, utils

    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    state = State(folder / "state.json")
    done, steps = state.values["epoch"], job["steps_per_epoch"]
    last, best = folder / "last", folder / "model" / job["name"]
    best.parent.mkdir(exist_ok=True)
    model = models.CellposeModel(
        gpu=job["device"] != "cpu", pretrained_model=str(last) if done else False, nchan=_planes(job["channels"])
    )
    (images, labels), (chosen, annotated) = load(folder, "train"), load(folder, "validate")
    sizes = [utils.diameters(label)[0] for label in labels if label.any()]
    losses: dict[bool, list[tuple[int, float, int]]] = {True: [], False: []}
    plain = train._loss_fn_seg

    def measured(target: Any, outputs: Any, device: Any) -> Any:
        loss = plain(target, outputs, device)
        learns = torch.is_grad_enabled()
        losses[learns].append((done * steps + len(losses[True]) + learns, loss.item(), len(target)))
        return loss

    def keep(_: object = None) -> None:
        step = losses[True][-1][0] if losses[True] else 0
        if step == state.values.get("step", 0):
            return
        since = state.values.get("step", 0)
        row = {"step": step, "loss": _mean([entry for entry in losses[True] if entry[0] > since])}
        # Without images of no objects, whose diameter counts as 5.
        model.net.diam_labels.data.fill_(float(np.mean(sizes)) if sizes else 5.0)
        # Cellpose validates at some epochs only.
        of_these_weights = [entry for entry in losses[False] if entry[0] == step]
        lowest = state.values.get("best", math.inf)
        if of_these_weights:
            row["val_loss"] = _mean(of_these_weights)
        if math.isinf(lowest) or row.get("val_loss", math.inf) < lowest:
            _save(model.net, best)
            lowest = row.get("val_loss", math.inf)
        _save(model.net, last)
        state.write(epoch=step // steps, step=step, best=lowest, rows=[*state.values["rows"], row])
        tell({"rows": [row]})

    # Cellpose tells its losses to a log alone, and saves weights without them.
    train._loss_fn_seg = measured
    tell({"rows": state.values["rows"]})
    if done < job["epochs"]:
        model.net.save_model = keep
        train.train_seg(
            model.net,
            train_data=[_with_planes(image) for image in images],
            train_labels=[np.asarray(label) for label in labels],
            test_data=[_with_planes(image) for image in chosen],
            test_labels=[np.asarray(label) for label in annotated],
            batch_size=job["batch_size"],
            learning_rate=job["learning_rate"],
            n_epochs=job["epochs"] - done,
            nimg_per_epoch=steps * job["batch_size"],
            normalize=False,
            bsize=job["patch"][0],
            min_train_masks=0,
            save_path=folder,
            save_every=1,
        )
    facts = {"versions": {name: version(name) for name in ("cellpose", "torch", "numpy")}}
    tell({"facts": facts | {"diameter": float(model.net.diam_labels.item())}})


def _planes(channels: int) -> int:
    """Channels of Cellpose's network: two at least, as its programs expect; the second may be black."""
    return max(2, channels)


def _with_planes(image: Any) -> Any:
    return np.pad(image, [(0, _planes(len(image)) - len(image)), (0, 0), (0, 0)])


def _mean(losses: list[tuple[int, float, int]]) -> float:
    return sum(loss * count for _, loss, count in losses) / sum(count for *_, count in losses)


def _save(network: Any, path: Path) -> None:
    new = path.with_name(f".{path.name}.new")
    type(network).save_model(network, str(new))
    new.replace(path)


def predict_cellpose(folder: Path, device: str, threads: int) -> Predict:
    """Cellpose's model, the file in a folder that is named as it, as a function from images to labels."""
    import torch
    from cellpose import models

    torch.set_num_threads(threads)
    file = folder / folder.name
    model = models.CellposeModel(gpu=device != "cpu", pretrained_model=str(file), nchan=_inputs_of(file))

    def predict(image: Any) -> Any:
        labels, *_ = model.eval(_with_planes(image), channel_axis=0, normalize=False)
        return labels.reshape(image.shape[1:])

    return predict


def _inputs_of(file: Path) -> int:
    """Channels of the network whose weights a file holds."""
    import torch

    weights = torch.load(file, map_location="cpu", weights_only=True)
    return int(next(values for values in weights.values() if values.ndim == 4).shape[1])


TRAIN = {"stardist": train_stardist, "cellpose": train_cellpose}
PREDICT = {"stardist": predict_stardist, "cellpose": predict_cellpose}


def answer(predict: Predict, questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer each image with labels, until there are no more."""
    while line := questions.readline():
        shape = [int(size) for size in line.split()]
        image = np.frombuffer(questions.read(4 * math.prod(shape)), np.float32).reshape(shape)
        answers.write(predict(image).astype(np.int32).tobytes())
        answers.flush()


def _end_with_parent() -> None:
    """End this process at once when the one that started it has ended."""
    # Not by sys.stdin, which Python locks and would wait for at the end.
    os.read(0, 1)
    os._exit(1)


def main(package: str, what: str, folder: Path, device: str = "auto", threads: str = "1") -> None:
    """Train, or predict."""
    answers = os.fdopen(os.dup(1), "wb")
    # Packages print to standard output.
    os.dup2(2, 1)
    try:
        __import__({"stardist": "tensorflow", "cellpose": "cellpose"}[package])
        __import__(package)
    except ModuleNotFoundError as error:
        print(f"no module {error.name}", file=sys.stderr)
        sys.exit(MISSING)
    if what == "predict":
        answer(PREDICT[package](folder, device, int(threads)), sys.stdin.buffer, answers)
        return

    def tell(entry: dict[str, Any]) -> None:
        answers.write(json.dumps(entry).encode() + b"\n")
        answers.flush()

    threading.Thread(target=_end_with_parent, daemon=True).start()
    TRAIN[package](json.loads((folder / "job.json").read_text(encoding="utf-8")), folder, tell)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), *sys.argv[4:])
