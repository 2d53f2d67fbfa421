"""Image files: what is read is what was written, whatever the format, and bad files are refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tomoscout.data.image_names import ending_of
from tomoscout.data.label_images import describe, read_image, read_labels, write_image, write_labels
from tomoscout.machine.errors import TomoscoutError

checked = settings(deadline=None, max_examples=25, derandomize=True)
random = np.random.default_rng(0)


def ramp(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)


def write_zarr(path: Path, values: np.ndarray, axes: str | None, separator: str = "/") -> None:
    group = zarr.open_group(str(path), mode="w")
    group.create_dataset("s0", data=values, chunks=(1,) * (values.ndim - 2) + (8, 8), dimension_separator=separator)
    image: dict[str, object] = {"datasets": [{"path": "s0"}]}
    if axes:
        image["axes"] = [{"name": name} for name in axes]
    group.attrs["multiscales"] = [image]


@pytest.mark.parametrize("name", ["labels.tif", "labels.zarr", "labels.ome.zarr"])
@pytest.mark.parametrize("shape", [(13, 17), (5, 13, 17)])
def test_labels_are_read_as_written_and_equal_labels_give_equal_bytes(
    tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    labels = random.integers(0, 40_000, shape)
    for folder in ("one", "other"):
        write_labels(tmp_path / folder / name, labels, 0.5)
    read = read_labels(tmp_path / "one" / name, len(shape))
    assert read.dtype == np.int32
    np.testing.assert_array_equal(read, labels)
    files = [sorted(p for p in (tmp_path / folder).rglob("*") if p.is_file()) for folder in ("one", "other")]
    assert [p.read_bytes() for p in files[0]] == [p.read_bytes() for p in files[1]]


@given(st.lists(st.integers(0, 2**31 - 1), min_size=6, max_size=6))
@checked
def test_every_label_survives(tmp_path_factory: pytest.TempPathFactory, values: list[int]) -> None:
    path = tmp_path_factory.mktemp("labels") / "labels.tif"
    write_labels(path, np.array(values).reshape(2, 3), None)
    assert read_labels(path, 2).ravel().tolist() == values


def test_writing_leaves_only_the_file(tmp_path: Path) -> None:
    write_labels(tmp_path / "labels.tif", np.eye(4, dtype=np.int32), 0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["labels.tif"]


def test_a_written_image_opens_in_imagej_with_its_calibration(tmp_path: Path) -> None:
    write_image(tmp_path / "image.tif", ramp(2, 3, 8, 9), 0.25)
    with tifffile.TiffFile(tmp_path / "image.tif") as file:
        assert file.is_imagej
        assert file.series[0].axes == "ZCYX"
        assert file.imagej_metadata is not None
        assert (file.imagej_metadata["unit"], file.imagej_metadata["spacing"]) == ("um", 0.25)
        numerator, denominator = file.pages[0].tags["XResolution"].value
    assert numerator / denominator == pytest.approx(4)
    np.testing.assert_array_equal(read_image(tmp_path / "image.tif", 3), ramp(2, 3, 8, 9))


@pytest.mark.parametrize(
    ("axes", "dimensions", "channels"),
    [("YX", 2, 1), ("CYX", 2, 3), ("ZYX", 3, 1), ("ZCYX", 3, 3), ("TCYX", 2, 4)],
)
def test_axes_of_an_imagej_tiff_are_those_of_the_file(
    tmp_path: Path, axes: str, dimensions: int, channels: int
) -> None:
    sizes = {"T": 1, "Z": 5, "C": channels, "Y": 8, "X": 9}
    values = ramp(*(sizes[axis] for axis in axes))
    tifffile.imwrite(tmp_path / "image.tif", values, imagej=True, metadata={"axes": axes})
    space = (5, 8, 9)[-dimensions:]
    found = describe(tmp_path / "image.tif", dimensions)
    assert (found.shape, found.channels, found.dtype, found.colours) == (space, channels, np.uint16, False)
    image = read_image(tmp_path / "image.tif", dimensions)
    expected = values.swapaxes(0, 1) if axes == "ZCYX" else values.reshape(channels, *space)
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("depth", [2, 3, 4, 7])
def test_a_plain_stack_is_a_volume_or_channels_as_asked(tmp_path: Path, depth: int) -> None:
    # Of three or four planes tifffile makes the colours of a picture.
    tifffile.imwrite(tmp_path / "stack.tif", ramp(depth, 8, 9))
    np.testing.assert_array_equal(read_image(tmp_path / "stack.tif", 3), ramp(1, depth, 8, 9))
    np.testing.assert_array_equal(read_image(tmp_path / "stack.tif", 2), ramp(depth, 8, 9))
    np.testing.assert_array_equal(read_labels(tmp_path / "stack.tif", 3), ramp(depth, 8, 9))


@pytest.mark.parametrize(("mode", "bands", "channels"), [("L", 1, 1), ("LA", 2, 1), ("RGB", 3, 3), ("RGBA", 4, 3)])
def test_pictures_give_their_colours_without_transparency(tmp_path: Path, mode: str, bands: int, channels: int) -> None:
    values = random.integers(0, 255, (8, 9, bands)).astype(np.uint8)
    Image.fromarray(values.squeeze(), mode=mode).save(tmp_path / "image.png")
    found = describe(tmp_path / "image.png", 2)
    assert (found.shape, found.channels, found.colours) == ((8, 9), channels, channels == 3)
    np.testing.assert_array_equal(read_image(tmp_path / "image.png", 2), np.moveaxis(values, -1, 0)[:channels])


def test_pictures_of_16_bits_and_with_a_palette_keep_their_labels(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 2], [3, 300, 65535]], dtype=np.uint16)
    Image.fromarray(labels).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "deep.png", 2), labels)
    picture = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8))
    picture.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10])
    picture.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "palette.png", 2), [[0, 1], [2, 1]])


@pytest.mark.parametrize("separator", ["/", "."])
@pytest.mark.parametrize(
    ("shape", "axes", "dimensions"),
    [
        ((20, 21), None, 2),
        ((2, 20, 21), "cyx", 2),
        ((3, 20, 21), None, 3),
        ((1, 2, 1, 20, 21), "tczyx", 2),
        ((1, 2, 3, 20, 21), "tczyx", 3),
    ],
)
def test_ome_zarr_is_read_by_its_axes(
    tmp_path: Path, shape: tuple[int, ...], axes: str | None, dimensions: int, separator: str
) -> None:
    write_zarr(tmp_path / "image.ome.zarr", ramp(*shape), axes, separator)
    channels = 2 if axes else 1
    space = (3, 20, 21)[-dimensions:]
    assert describe(tmp_path / "image.ome.zarr", dimensions).shape == space
    np.testing.assert_array_equal(
        read_image(tmp_path / "image.ome.zarr", dimensions), ramp(*shape).reshape(channels, *space)
    )


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32])
def test_labels_of_every_whole_type_are_read(tmp_path: Path, kind: type) -> None:
    labels = np.array([[0, 1], [100, 0]], dtype=kind)
    tifffile.imwrite(tmp_path / "labels.tif", labels)
    np.testing.assert_array_equal(read_labels(tmp_path / "labels.tif", 2), labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.ones((8, 9), np.float32), "its labels are float32, expected whole numbers"),
        (np.full((8, 9), -1, np.int16), "its labels go from -1 to 0, expected 0"),
        (np.full((8, 9), 2**31, np.uint32), "its labels go from 0 to 2147483648"),
        (np.ones((2, 8, 9), np.uint8), "labels with 2 channels, expected one"),
        (np.ones((2, 5, 8, 9), np.uint8), "its axes are q, q, y, x with 2 × 5 × 8 × 9 voxels, expected y, x"),
    ],
)
def test_labels_that_are_none_are_refused_in_one_line(tmp_path: Path, labels: np.ndarray, message: str) -> None:
    path = tmp_path / "labels.tif"
    tifffile.imwrite(path, labels, photometric="minisblack")
    with pytest.raises(TomoscoutError) as raised:
        read_labels(path, 2)
    assert str(raised.value).startswith(f"{path}: {message}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("axes", "dimensions"), [("ZYX", 2), ("TYX", 2), ("TYX", 3), ("TZYX", 3), ("YX", 3)])
def test_other_axes_are_refused(tmp_path: Path, axes: str, dimensions: int) -> None:
    tifffile.imwrite(
        tmp_path / "image.tif", ramp(4, 5, 8, 9)[(0,) * (4 - len(axes))], imagej=True, metadata={"axes": axes}
    )
    with pytest.raises(TomoscoutError, match=f"its axes are .* \\(dimensions: {dimensions}\\)"):
        describe(tmp_path / "image.tif", dimensions)


@pytest.mark.parametrize("name", ["image.tif", "image.png"])
@pytest.mark.parametrize("kept", [0, 5, 0.5])
def test_a_cut_file_is_refused(tmp_path: Path, name: str, kept: float) -> None:
    path = tmp_path / name
    if name.endswith("png"):
        Image.fromarray(random.integers(0, 255, (64, 64)).astype(np.uint8)).save(path)
    else:
        tifffile.imwrite(path, random.integers(0, 255, (64, 64)).astype(np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content) if 0 < kept < 1 else kept)])
    with pytest.raises(TomoscoutError, match=r"cannot be read \(.+\)") as raised:
        read_image(path, 2)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_zarr_with_a_cut_chunk_or_without_an_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.zarr"
    write_zarr(path, random.integers(0, 60_000, (16, 16)), "yx")
    chunk = path / "s0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:40])
    with pytest.raises(TomoscoutError, match=r"image.zarr: cannot be read"):
        read_image(path, 2)
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(TomoscoutError, match=r"empty.zarr: cannot be read"):
        describe(tmp_path / "empty.zarr", 2)


def test_missing_and_unknown_files_and_nan_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TomoscoutError, match=r"image.tif: no such file"):
        describe(tmp_path / "image.tif", 2)
    (tmp_path / "image.jpg").touch()
    with pytest.raises(TomoscoutError, match=r"image.jpg: expected a name that ends in .*\.png"):
        describe(tmp_path / "image.jpg", 2)
    tifffile.imwrite(tmp_path / "nan.tif", np.full((4, 4), np.nan, np.float32))
    with pytest.raises(TomoscoutError, match=r"nan.tif: holds NaN"):
        read_image(tmp_path / "nan.tif", 2)


def test_the_longest_ending_counts() -> None:
    assert ending_of(Path("a.b.OME.TIF")) == ".ome.tif"
    assert ending_of(Path("a.zarr")) == ".zarr"
    assert ending_of(Path("a.json")) is None
