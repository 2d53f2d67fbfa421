"""The data of a training: annotated images, prepared as the network takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tomoscout.learning.sampling import Centres, largest_jitter
from tomoscout.learning.volumes import LabelledVolume, VolumeSource
from tomoscout.machine.files import digest
from tomoscout.tasks.instances.annotation import Annotation
from tomoscout.tasks.instances.annotation_options import Annotations
from tomoscout.tasks.instances.annotations import channel_numbers, network_calibration
from tomoscout.tasks.instances.prepare import prepare, rescale_factor, rescale_labels, rescaled_shape

LARGEST_LABEL = 2**31 - 2
"""The largest number of an object; the next one marks what losses ignore."""

MARGIN = 8
"""Pixels between an object and the border of a crop that is centred on it, if the crop is large enough."""


class CellData:
    """Reads the annotated images of a training, and scales and normalises them alike."""

    def __init__(self, options: Annotations, training: Sequence[Annotation], validation: Sequence[Annotation]) -> None:
        """Take the annotated images that train, and those that choose the model. The first of the latter are spread
        over all of them, as neighbours resemble each other."""
        self.options = options
        self.training = list(training)
        self.validation = _spread(validation)
        everything = [*training, *validation]
        self.inputs = tuple(options.channels) or everything[0].channels[:1]
        self.normalisations = tuple(options.normalisations())
        self.calibration = network_calibration(options, everything)
        self.weights = {name: source.weight for name, source in options.annotations.items()}

    def factor(self, annotation: Annotation) -> float:
        """By how much an image is enlarged so that its pixels have the size that the network works at."""
        return rescale_factor(annotation.calibration, self.calibration, self.options.rescale_tolerance)

    def shape(self, annotation: Annotation) -> tuple[int, ...]:
        """Pixels (y, x) of an image as the network sees it."""
        return rescaled_shape(annotation.shape, self.factor(annotation))

    @property
    def training_shapes(self) -> list[tuple[int, ...]]:
        """Shapes (y, x) of the prepared training images."""
        return [self.shape(entry) for entry in self.training]

    @property
    def validation_shapes(self) -> list[tuple[int, ...]]:
        """Shapes (y, x) of the prepared validation images."""
        return [self.shape(entry) for entry in self.validation]

    def volumes(self) -> list[VolumeSource]:
        """The training images, each with its labels."""
        return [
            VolumeSource(entry.key, digest([entry.inputs, self.prepared]), partial(self.read, entry))
            for entry in self.training
        ]

    @property
    def prepared(self) -> dict[str, Any]:
        """How images are prepared, as plain values."""
        return {
            "inputs": list(self.inputs),
            "normalisations": [entry.model_dump(mode="json") for entry in self.normalisations],
            "calibration": self.calibration,
            "rescale_tolerance": self.options.rescale_tolerance,
        }

    def read(self, annotation: Annotation) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """A prepared image (channels, (z,) y, x) and its labels ((z,) y, x)."""
        return self.read_image(annotation), self.read_labels(annotation)

    def read_image(self, annotation: Annotation) -> NDArray[np.float32]:
        """A prepared image (channels, (z,) y, x)."""
        numbers = channel_numbers(annotation, self.options.channels)
        return prepare(annotation.read_image(), numbers, self.normalisations, self.factor(annotation))

    def read_labels(self, annotation: Annotation) -> NDArray[np.int32]:
        """The labels of a prepared image ((z,) y, x)."""
        return rescale_labels(annotation.read_labels(), self.factor(annotation))

    def centres(self, volumes: Sequence[LabelledVolume], patch: Sequence[int]) -> Mapping[str, Centres]:
        """The middles of objects, by the name of the folder that the images are from."""
        places: dict[str, list[NDArray[np.int64]]] = {name: [] for name in self.options.annotations}
        for number, (annotation, volume) in enumerate(zip(self.training, volumes, strict=True)):
            found = _middles(volume.labels.cpu().numpy(), volume.ignore)
            places[annotation.source].append(np.column_stack([np.full(len(found), number), found]))
        nothing = np.empty((0, 1 + len(patch)), np.int64)
        jitter = largest_jitter(patch, MARGIN)
        return {name: Centres(np.concatenate([nothing, *parts]), jitter) for name, parts in places.items()}


def _spread(annotations: Sequence[Annotation]) -> list[Annotation]:
    """The images in an order whose beginning is spread evenly over all: the order of reversed binary digits."""
    digits = max(1, (len(annotations) - 1).bit_length())
    order = sorted(range(len(annotations)), key=lambda number: f"{number:0{digits}b}"[::-1])
    return [annotations[number] for number in order]


def _middles(labels: NDArray[np.int32], ignore: int) -> NDArray[np.int64]:
    """Middles of the boxes around objects (objects, dimensions), in voxels."""
    windows = ndimage.find_objects(np.where(labels == ignore, 0, labels))
    middles = [[(part.start + part.stop) // 2 for part in window] for window in windows if window is not None]
    return np.array(middles, np.int64).reshape(-1, labels.ndim)
