"""Tomograms that are read part by part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tomoscout.data.open_tomogram import OpenTomogram
from tomoscout.data.zarr_files import new_volume, open_volume
from tomoscout.machine.errors import TomoscoutError


def opened(path: Path, values: np.ndarray) -> OpenTomogram:
    import fsspec

    with new_volume(path, values.shape, values.dtype, 10.0) as array:
        array[...] = values
    return OpenTomogram(open_volume(fsspec.filesystem("file"), str(path), 10.0), "a tomogram")


@pytest.mark.parametrize("every", [1, 2, 3, 7])
@pytest.mark.parametrize("shape", [(5, 6, 7), (300, 3, 270)])
def test_a_sample_is_every_nth_voxel(shape: tuple[int, int, int], every: int, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    tomogram = opened(tmp_path / "a.zarr", values)
    np.testing.assert_array_equal(tomogram.sample(every), values[::every, ::every, ::every])
    region = (slice(1, 4), slice(0, 2), slice(2, 6))
    np.testing.assert_array_equal(tomogram.read(region), values[region])


@pytest.mark.parametrize(
    ("value", "message"), [(np.nan, "holds NaN"), (np.inf, "holds NaN or infinite"), (0.0, "is constant")]
)
def test_values_that_cannot_be_used(value: float, message: str, tmp_path: Path) -> None:
    values = np.zeros((4, 5, 300), dtype=np.float32)
    # Not in the sample.
    values[1, 1, 299] = value
    with pytest.raises(TomoscoutError, match=f"a tomogram {message}"):
        opened(tmp_path / "a.zarr", values).sample(2)
