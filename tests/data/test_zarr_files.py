"""Volumes as other programs write them: read right, or refused with the reason."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import zarr

from support.project import SHAPE, SmallProject
from tomoscout.data.picks import Picks
from tomoscout.data.project import Project
from tomoscout.data.written import Segmentation
from tomoscout.data.zarr_files import digest_samples, open_volume, write_volume
from tomoscout.machine.errors import TomoscoutError
from tomoscout.options.names import Source

MEMBRANE = Segmentation("membrane", "expert", "0", 10.0, False)
VOLUME = np.random.default_rng(0).integers(1, 5, SHAPE).astype(np.float32)


def axes(*names: str, unit: str | None = "angstrom") -> list[dict[str, str]]:
    return [{"name": name, **({"type": "space", "unit": unit} if unit and name in "xyz" else {})} for name in names]


def multiscales(
    spacing: float | None, names: str = "zyx", unit: str | None = "angstrom", path: str = "0"
) -> dict[str, Any]:
    scale = [{"type": "scale", "scale": [1.0] * (len(names) - 3) + [spacing] * 3}] if spacing else []
    return {"axes": axes(*names, unit=unit), "datasets": [{"path": path, "coordinateTransformations": scale}]}


def rewrite(
    folder: Path, volume: np.ndarray, image: dict[str, Any] | None, *, separator: str | None = "/", level: str = "0"
) -> None:
    """The image of a folder, written as another program might."""
    shutil.rmtree(folder)
    group = zarr.open_group(zarr.NestedDirectoryStore(str(folder)) if separator == "/" else str(folder), mode="w")
    chunks = tuple(max(1, (size + 1) // 2) for size in volume.shape)
    group.create_dataset(level, data=volume, chunks=chunks, dimension_separator=separator or ".")
    if separator is None:
        facts = folder / level / ".zarray"
        facts.write_text(json.dumps({k: v for k, v in json.loads(facts.read_text()).items() if k[:4] != "dime"}))
    if image is not None:
        group.attrs["multiscales"] = [image]


VARIANTS: dict[str, dict[str, Any]] = {
    "without metadata": {"image": None},
    "chunks separated by dots": {"image": multiscales(10.0), "separator": "."},
    "a separator that is not named": {"image": multiscales(10.0), "separator": None},
    "a level of another name": {"image": multiscales(10.0, path="s0"), "level": "s0"},
    "a channel": {"image": multiscales(10.0, "czyx"), "leading": 1},
    "time and channel": {"image": multiscales(10.0, "tczyx"), "leading": 2},
    "a channel that the metadata does not name": {"image": multiscales(10.0), "leading": 1},
    "nanometres": {"image": multiscales(1.0, unit="nanometer")},
    "a spacing that was rounded": {"image": multiscales(10.04)},
    "a scale that says nothing": {"image": multiscales(1.0, unit=None)},
}


@pytest.fixture
def made(small: SmallProject) -> tuple[SmallProject, list[Path]]:
    folders = [small.write_tomogram("a", VOLUME), small.add_segmentation("a", "membrane:expert/0", VOLUME)]
    return small, folders


def read(project: Project) -> list[np.ndarray]:
    return [project.read_tomogram("a", "wbp@10.0"), project.read_segmentation("a", MEMBRANE)]


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_a_variant_that_is_read(made: tuple[SmallProject, list[Path]], variant: dict[str, Any]) -> None:
    small, folders = made
    options = dict(variant)
    volume = VOLUME[(None,) * options.pop("leading", 0)]
    for folder in folders:
        rewrite(folder, volume, **options)
    assert small.project().tomograms("a")["wbp@10.0"].shape == SHAPE
    for values in read(small.project()):
        np.testing.assert_array_equal(values, VOLUME)
    part = (slice(2, 9), slice(3, 30), slice(0, 7))
    np.testing.assert_array_equal(small.project().read_tomogram("a", "wbp@10.0", part), VOLUME[part])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "axes": ({"image": multiscales(10.0, "xyz")}, "its axes are x, y, z by its OME-Zarr metadata, expected z, y, x"),
    "scale": (
        {"image": multiscales(13.0)},
        "its voxels are of 13 Å by its OME-Zarr metadata, but 10 Å by the name of its folder",
    ),
    "unit": ({"image": multiscales(10.0, unit="nanometer")}, "its voxels are of 100 Å"),
    "unknown unit": ({"image": multiscales(10.0, unit="parsec")}, "the scale in its OME-Zarr metadata cannot be read"),
    "channels": ({"image": None, "volume": np.stack([VOLUME, VOLUME])}, r"its shape is \(2, 24, 32, 40\), expected"),
    "a plane": ({"image": None, "volume": VOLUME[0]}, r"its shape is \(32, 40\), expected three axes: z, y, x"),
    "nothing": ({"image": None, "volume": VOLUME[:0]}, r"its shape is \(0, 32, 40\)"),
    "complex": ({"image": None, "volume": VOLUME.astype(np.complex64)}, "its values are complex64, expected numbers"),
    "text": ({"image": None, "volume": VOLUME.astype("U3")}, "its values are <U3, expected numbers"),
    "level": ({"image": multiscales(10.0, path="s0")}, "no readable zarr array: no file s0/.zarray"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_a_variant_that_is_refused(made: tuple[SmallProject, list[Path]], case: tuple[dict[str, Any], str]) -> None:
    small, folders = made
    options, message = dict(case[0]), case[1]
    volume = options.pop("volume", VOLUME)
    for folder in folders:
        rewrite(folder, volume, **options)
    found = small.project().tomograms("a")["wbp@10.0"]
    assert found.shape is None
    assert found.problem
    with pytest.raises(TomoscoutError, match=f"^demo/a: tomogram wbp@10.0: {message}"):
        small.project().read_tomogram("a", "wbp@10.0")
    with pytest.raises(TomoscoutError, match=f"^demo/a: segmentation {MEMBRANE}: {message}"):
        small.project().read_segmentation("a", MEMBRANE)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shape", [24, " ", 40]),
        ("shape", [10**30, 32, 40]),
        ("shape", 5),
        ("chunks", [12, -1, 20]),
        ("chunks", [12, 0, 20]),
        ("order", 1e308),
        ("dtype", "<f99"),
    ],
    ids=str,
)
def test_metadata_that_makes_no_sense_is_named(made: tuple[SmallProject, list[Path]], key: str, value: Any) -> None:
    small, (folder, _) = made
    facts = folder / "0" / ".zarray"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {key: value}))
    with pytest.raises(TomoscoutError, match=r"^demo/a: tomogram wbp@10.0: "):
        small.project().read_tomogram("a", "wbp@10.0")
    small.refresh()


def test_empty_chunks_say_nothing_of_the_separator(made: tuple[SmallProject, list[Path]]) -> None:
    small, (_, folder) = made
    rewrite(folder, VOLUME, None, separator="/")
    facts = folder / "0" / ".zarray"
    facts.write_text(json.dumps({k: v for k, v in json.loads(facts.read_text()).items() if k[:4] != "dime"}))
    (folder / "0" / "0" / "0" / "0").unlink()
    values = small.project().read_segmentation("a", MEMBRANE, allow_missing_chunks=True)
    assert not values[:12, :16, :20].any()
    np.testing.assert_array_equal(values[12:], VOLUME[12:])


def test_files_that_are_no_chunks_do_not_count(made: tuple[SmallProject, list[Path]]) -> None:
    small, (folder, _) = made
    (folder / "0" / "0" / "0" / ".nfs0001").write_text("left by a file system")
    (folder / "0" / "7").write_text("a note")
    np.testing.assert_array_equal(small.project().read_tomogram("a", "wbp@10.0"), VOLUME)
    (folder / "0" / "1" / "0" / "0").unlink()
    with pytest.raises(TomoscoutError, match=r"truncated: 7 of 8 chunks are there"):
        small.project().read_tomogram("a", "wbp@10.0")


def test_zarr_of_format_3_is_named(made: tuple[SmallProject, list[Path]]) -> None:
    small, (folder, _) = made
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "zarr.json").write_text("{}")
    with pytest.raises(TomoscoutError, match=r"wbp@10.0: written in zarr format 3, expected format 2"):
        small.project().read_tomogram("a", "wbp@10.0")


@pytest.mark.parametrize("image", [{"axes": 5}, {"datasets": "0"}, {"datasets": [5]}, "image", 5, [], None], ids=str)
def test_metadata_of_another_form_says_nothing(made: tuple[SmallProject, list[Path]], image: Any) -> None:
    small, (folder, _) = made
    rewrite(folder, VOLUME, None)
    zarr.open_group(str(folder)).attrs["multiscales"] = [image]
    np.testing.assert_array_equal(small.project().read_tomogram("a", "wbp@10.0"), VOLUME)


def test_a_chunk_that_may_not_be_read_is_not_background(made: tuple[SmallProject, list[Path]]) -> None:
    small, (folder, _) = made
    chunk = folder / "0" / "0" / "0" / "0"
    chunk.unlink()
    chunk.mkdir()
    with pytest.raises(TomoscoutError, match=r"^demo/a: tomogram wbp@10.0: "):
        small.project().read_tomogram("a", "wbp@10.0")


# The digest of the content


@pytest.mark.parametrize("separator", ["/", "."])
def test_samples_tell_volumes_apart(tmp_path: Path, separator: str) -> None:
    large = np.random.default_rng(0).normal(size=(40, 128, 128)).astype(np.float32)
    changed = large.copy()
    changed[20, 60, 60:70] = 0
    digests = []
    for number, volume in enumerate((large, large, -large, changed, large[:39])):
        folder = tmp_path / str(number)
        group = zarr.open_group(str(folder), mode="w")
        group.create_dataset("0", data=volume, chunks=(40, 64, 64), dimension_separator=separator)
        digests.append(digest_samples(folder))
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


# What readers see while a volume or picks are written


def test_a_reader_finds_the_volume_at_any_moment(tmp_path: Path) -> None:
    path, volumes = tmp_path / "v.zarr", [np.full((8, 64, 64), value, dtype=np.uint8) for value in (1, 2)]
    write_volume(path, volumes[0], 10.0)
    done = threading.Event()

    def write() -> None:
        for number in range(60):
            write_volume(path, volumes[number % 2], 10.0)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    reads = 0
    try:
        while not done.is_set() or not reads:
            values = zarr.open_array(str(path / "0"), mode="r")[:]
            assert values.all()
            reads += 1
    finally:
        writer.join()
    assert reads > 5


def test_a_reader_finds_whole_picks_at_any_moment(small: SmallProject) -> None:
    small.add_run("a")
    source, project = Source("ribosome", "tomoscout", "1"), small.project()
    path = small.overlay / "ExperimentRuns" / "a" / "Picks" / "tomoscout_1_ribosome.json"
    places = np.random.default_rng(0).uniform(0, 200, (400, 3))
    project.write_picks("a", source, Picks.at(places))
    done = threading.Event()

    def write() -> None:
        for number in range(40):
            project.write_picks("a", source, Picks.at(places[number:]))
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    reads = 0
    try:
        while not done.is_set() or not reads:
            assert len(json.loads(path.read_text())["points"]) > 300
            reads += 1
    finally:
        writer.join()
    assert reads > 5


@pytest.mark.parametrize(
    ("size", "chunk", "start", "stop"),
    [
        (192, 192, 0, 192),
        (630, 210, 210, 420),
        (512, 256, 256, 512),
        (100, 256, 0, 100),
        # Of small chunks as many as make up one of full size.
        (630, 64, 192, 448),
        (100, 64, 0, 100),
    ],
)
def test_of_the_middle_few_chunks_are_read(tmp_path: Path, size: int, chunk: int, start: int, stop: int) -> None:
    volume = np.random.default_rng(0).integers(0, 9, (4, size, 3)).astype(np.uint8)
    group = zarr.open_group(str(tmp_path / "v.zarr"), mode="w")
    group.create_dataset("0", data=volume, chunks=(2, chunk, 3), dimension_separator="/")
    opened = open_volume(fsspec.filesystem("file"), str(tmp_path / "v.zarr"), 10.0)
    region = opened.middle()
    assert (region[1].start, region[1].stop) == (start, stop)
    np.testing.assert_array_equal(opened.read(region), volume[2:3, start:stop])
