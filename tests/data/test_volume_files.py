"""Tomograms in files of other programs."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import tifffile

from tomoscout.data.volume_files import open_volume_file
from tomoscout.data.zarr_files import write_volume
from tomoscout.machine.errors import TomoscoutError

WHOLE = (slice(None),) * 3


def made_up(dtype: str = "float32") -> np.ndarray:
    return (np.random.default_rng(0).normal(size=(4, 5, 6)) * 20).astype(dtype)


def write_mrc(path: Path, values: np.ndarray, voxel_size: object = 7.5) -> Path:
    with mrcfile.new(path) as file:
        file.set_data(values)
        file.set_volume()
        file.voxel_size = voxel_size
    return path


@pytest.mark.parametrize("dtype", ["int8", "int16", "float32", "uint16", "float16"])
def test_mrc_files_of_all_modes(dtype: str, tmp_path: Path) -> None:
    values = abs(made_up()).astype(dtype) if dtype == "uint16" else made_up(dtype)
    found = open_volume_file(write_mrc(tmp_path / "a.mrc", values))
    assert (found.shape, found.voxel_spacing, found.fault) == ((4, 5, 6), 7.5, None)
    np.testing.assert_array_equal(found.read(WHOLE), values)
    np.testing.assert_array_equal(found.read((slice(1, 3), slice(0, 2), slice(4, 6))), values[1:3, :2, 4:6])


def test_a_file_of_the_other_endianness(tmp_path: Path) -> None:
    values = made_up()
    path = write_mrc(tmp_path / "a.rec", values)
    raw = bytearray(path.read_bytes())
    # Every word of the header is turned but names, the machine stamp and labels.
    words = [*range(0, 104, 4), 108, *range(196, 208, 4), 216, 220]
    for start in words:
        raw[start : start + 4] = raw[start : start + 4][::-1]
    raw[212:216] = bytes([0x11, 0x11, 0, 0])
    path.write_bytes(bytes(raw[:1024]) + values.astype(">f4").tobytes())
    found = open_volume_file(path)
    assert found.voxel_spacing == 7.5
    np.testing.assert_array_equal(found.read(WHOLE), values)


def test_compressed_and_axes_in_another_order(tmp_path: Path) -> None:
    values = made_up()
    path = write_mrc(tmp_path / "a.mrc", values)
    with mrcfile.open(path, mode="r+") as file:
        file.header.mapc, file.header.mapr, file.header.maps = 3, 2, 1
    found = open_volume_file(path)
    assert found.shape == (6, 5, 4)
    np.testing.assert_array_equal(found.read(WHOLE), values.transpose(2, 1, 0))
    raw = write_mrc(tmp_path / "b.mrc", values).read_bytes()
    for name, pack in (("b.mrc.gz", gzip.compress), ("B.MAP.GZ", gzip.compress), ("b.rec.bz2", bz2.compress)):
        packed = tmp_path / name
        packed.write_bytes(pack(raw))
        np.testing.assert_array_equal(open_volume_file(packed).read(WHOLE), values)
        packed.write_bytes(packed.read_bytes()[:-60])
        with pytest.raises(TomoscoutError, match="ended before the end-of-stream marker"):
            open_volume_file(packed)


def changed(path: Path, word: int, *values: float, kind: str = "<i4") -> None:
    """Write other values into the header, from a 4-byte word on; words are counted from 1, as in MRC2014."""
    raw = bytearray(path.read_bytes())
    new = np.array(values, kind).tobytes()
    raw[4 * (word - 1) : 4 * (word - 1) + len(new)] = new
    path.write_bytes(bytes(raw))


NO_VOXELS = "not a tomogram (truncated, or its header is damaged: "


@pytest.mark.parametrize(
    ("word", "values", "kind", "expected"),
    [
        # Taken as they are: what is wrong does not matter here.
        (53, [0x4B4E554A], "<i4", 7.5),  # the name of the format
        (54, [0], "<i4", 7.5),  # the machine stamp: empty, of the other endianness, nonsense
        (54, [0x1111], "<i4", 7.5),
        (54, [0x64636261], "<i4", 7.5),
        (14, [60, 90, 110], "<f4", 7.5),  # angles of the cell
        (17, [0, 0, 0], "<i4", 7.5),  # axes, which old programs leave 0
        # No voxel size.
        (11, [np.nan], "<f4", None),
        (11, [-45], "<f4", None),
        (8, [0], "<i4", None),
        (10, [2], "<i4", "its voxels are of 15 × 7.5 × 7.5 Å, not cubes"),
        # No volume.
        (17, [1, 1, 2], "<i4", "not a tomogram (its axes (MAPC, MAPR, MAPS) are 1, 1, 2, expected 1, 2, 3 in any"),
        (1, [0], "<i4", "not a tomogram (its shape is (4, 5, 0), expected three axes: z, y, x)"),
        (1, [-6], "<i4", f"{NO_VOXELS}4×5×-6 voxels of mode 2 in 1,504 bytes)"),
        (4, [99], "<i4", f"{NO_VOXELS}4×5×6 voxels of mode 99 in 1,504 bytes)"),
        (24, [400], "<i4", f"{NO_VOXELS}4×5×6 voxels of mode 2 in 1,504 bytes)"),
        (24, [-4], "<i4", "not a tomogram ("),  # length of the extended header
    ],
)
def test_headers_that_are_damaged(
    word: int, values: list[float], kind: str, expected: float | str | None, tmp_path: Path
) -> None:
    path = write_mrc(tmp_path / "a.mrc", made_up())
    changed(path, word, *values, kind=kind)
    if isinstance(expected, str) and expected.startswith("not"):
        with pytest.raises(TomoscoutError) as refused:
            open_volume_file(path)
        assert str(refused.value).startswith(f"{path}: {expected}")
        return
    found = open_volume_file(path)
    assert expected in (found.voxel_spacing, found.fault)
    np.testing.assert_array_equal(found.read(WHOLE), made_up())


@pytest.mark.parametrize("kind", ["", "FEI1", "SERI"])
def test_an_extended_header_is_passed_over(kind: str, tmp_path: Path) -> None:
    with mrcfile.new(tmp_path / "A.REC") as file:
        file.set_data(made_up())
        file.set_volume()
        file.set_extended_header(np.zeros(3, "V768" if kind == "FEI1" else "f4"))
        file.header.exttyp = kind.encode()
        file.voxel_size = 7.5
    found = open_volume_file(tmp_path / "A.REC")
    assert found.voxel_spacing == 7.5
    np.testing.assert_array_equal(found.read(WHOLE), made_up())


def test_bytes_that_imod_wrote_without_a_sign(tmp_path: Path) -> None:
    values = np.arange(120, dtype=np.uint8).reshape(4, 5, 6) * 2
    path = write_mrc(tmp_path / "a.mrc", values.view(np.int8))
    raw = bytearray(path.read_bytes())
    raw[152:160] = np.array([1146047817, 0], dtype="<i4").tobytes()
    path.write_bytes(bytes(raw))
    np.testing.assert_array_equal(open_volume_file(path).read(WHOLE), values)


@pytest.mark.parametrize(("sizes", "spacing", "fault"), [((0, 0, 0), None, False), ((7.5, 7.5, 15), None, True)])
def test_a_voxel_size_that_cannot_be_taken(
    sizes: tuple[float, ...], spacing: float | None, fault: bool, tmp_path: Path
) -> None:
    found = open_volume_file(write_mrc(tmp_path / "a.mrc", made_up(), sizes))
    assert found.voxel_spacing == spacing
    assert (found.fault is not None) == fault
    if fault:
        assert found.fault == "its voxels are of 15 × 7.5 × 7.5 Å, not cubes"


def test_a_stack_of_images_has_the_size_of_its_pixels(tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "a.mrc", made_up())
    with mrcfile.open(path, mode="r+") as file:
        file.header.mz = 1
        file.header.cella.z = 7.5
    assert open_volume_file(path).voxel_spacing == 7.5


@pytest.mark.parametrize("kind", ["plain", "imagej", "ome"])
def test_tiff_files(kind: str, tmp_path: Path) -> None:
    values, path = made_up(), tmp_path / "a.tif"
    if kind == "imagej":
        tifffile.imwrite(
            path,
            values,
            imagej=True,
            resolution=(1 / 0.75,) * 2,
            metadata={"spacing": 0.75, "unit": "nm", "axes": "ZYX"},
        )
    elif kind == "ome":
        sizes = {f"PhysicalSize{axis}": 0.75 for axis in "ZYX"} | {f"PhysicalSize{axis}Unit": "nm" for axis in "ZYX"}
        path = tmp_path / "a.ome.tif"
        tifffile.imwrite(path, values, metadata={"axes": "ZYX", **sizes})
    else:
        tifffile.imwrite(path, values)
    found = open_volume_file(path)
    assert found.shape == (4, 5, 6)
    assert found.voxel_spacing == (None if kind == "plain" else pytest.approx(7.5))
    np.testing.assert_array_equal(found.read((slice(1, 3), slice(None), slice(2, 6))), values[1:3, :, 2:])


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("part", [0.001, 0.3, 0.5, 0.9])
def test_a_truncated_tiff_is_not_a_shorter_one(
    compression: str | None, part: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.tile(made_up(), (2, 4, 4)), metadata=None, compression=compression)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(TomoscoutError, match=r"a\.tif: not a tomogram \(.+\)$"):
        open_volume_file(path)
    assert capsys.readouterr() == ("", "")


def test_ome_zarr(tmp_path: Path) -> None:
    values = made_up()
    write_volume(tmp_path / "a.zarr", values, 12.5)
    found = open_volume_file(tmp_path / "a.zarr")
    assert (found.shape, found.voxel_spacing) == ((4, 5, 6), 12.5)
    np.testing.assert_array_equal(found.read(WHOLE), values)


def test_files_that_are_refused(tmp_path: Path) -> None:
    values = made_up()
    path = write_mrc(tmp_path / "a.mrc", values)
    (tmp_path / "cut.mrc").write_bytes(path.read_bytes()[:-40])
    (tmp_path / "empty.mrc").write_bytes(b"")
    (tmp_path / "text.tif").write_text("no picture")
    tifffile.imwrite(tmp_path / "flat.tif", values[0])
    tifffile.imwrite(tmp_path / "colours.tif", np.zeros((5, 6, 3), dtype=np.uint8), photometric="rgb")
    with mrcfile.new(tmp_path / "image.mrc") as file:
        file.set_data(values[0])
    with mrcfile.new(tmp_path / "volumes.mrc") as file:
        file.set_data(np.stack([values, values]))
    with mrcfile.new(tmp_path / "complex.mrc") as file:
        file.set_data(values.astype(np.complex64))
    (tmp_path / "a.zarr").mkdir()
    write_volume(tmp_path / "cut.zarr", values, 12.5)
    (tmp_path / "cut.zarr/0/0/0/0").unlink()
    expected = {
        "cut.mrc": "not a tomogram",
        "empty.mrc": "not a tomogram",
        "text.tif": "not a tomogram",
        "flat.tif": "expected z, y, x",
        "colours.tif": "expected z, y, x",
        "image.mrc": "expected three axes",
        "volumes.mrc": "expected three axes",
        "complex.mrc": "expected real numbers",
        "a.zarr": "no readable zarr array",
        "cut.zarr": "truncated: 0 of 1 chunks are there",
        "gone.mrc": "no such file",
        "a.mrc.unknown": "unknown ending; expected",
    }
    (tmp_path / "a.mrc.unknown").write_bytes(path.read_bytes())
    for name, message in expected.items():
        with pytest.raises(TomoscoutError, match=message) as refused:
            open_volume_file(tmp_path / name)
        assert str(refused.value).startswith(f"{tmp_path / name}: ")
    assert open_volume_file(tmp_path / "a.mrc.unknown", "mrc").shape == (4, 5, 6)
