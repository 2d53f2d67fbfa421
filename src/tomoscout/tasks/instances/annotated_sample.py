"""The annotated image of nuclei that comes with the package stardist (BSD-3), to be mixed with others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import digest
from tomoscout.tasks.instances.annotation import Annotation
from tomoscout.tasks.instances.annotation_options import Annotations, Source
from tomoscout.tasks.instances.stardist_package import stardist_module


@dataclass(frozen=True)
class AnnotatedSample(Annotation):
    """A sample of the package."""

    @property
    def place(self) -> str:
        return f"the sample {self.name} of the package stardist"

    @cached_property
    def inputs(self) -> str:
        image, labels = _read(len(self.shape), self.source)
        return digest([digest(image.tobytes()), digest(labels.tobytes()), self.channels, self.calibration])

    def read_image(self) -> NDArray[Any]:
        return _read(len(self.shape), self.source)[0][None]

    def read_labels(self) -> NDArray[np.int32]:
        return _read(len(self.shape), self.source)[1]


def annotated_sample(name: str, source: Source, options: Annotations) -> AnnotatedSample:
    """The sample with as many dimensions as the other images.

    Raises:
        TomoscoutError: the package is not installed, or the calibration is not given.
    """
    assert source.sample is not None
    if source.calibration is None and not options.uncalibrated:
        raise TomoscoutError(
            f"cells.annotations.{name}: no calibration; give cells.annotations.{name}.calibration (µm per voxel), or "
            "cells.uncalibrated: true"
        )
    image, labels = _read(options.dimensions, name)
    channels = tuple(source.channels or ["1"])
    if len(channels) != 1:
        raise TomoscoutError(f"cells.annotations.{name}.channels: {', '.join(channels)}, but the sample has one")
    known = (channels, source.calibration, source.sample, image.shape, str(labels.dtype))
    return AnnotatedSample(name, source.sample, *known)


def _read(dimensions: int, source: str) -> tuple[NDArray[Any], NDArray[np.int32]]:
    samples = stardist_module("data", f"cells.annotations.{source}.sample")
    read = samples.test_image_nuclei_2d if dimensions == 2 else samples.test_image_nuclei_3d
    image, labels = read(return_mask=True)
    return image, labels.astype(np.int32)
