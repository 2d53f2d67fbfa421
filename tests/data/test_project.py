"""The door to copick: what is written comes back, through this door and through copick's own."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import copick
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import tomoscout
from support.project import SHAPE, SmallProject
from tomoscout.data.copick_config import PickableObject, create_project, read_objects
from tomoscout.data.picks import Picks
from tomoscout.data.project import Project
from tomoscout.data.streams import pieces
from tomoscout.data.written import Probabilities, Segmentation
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import digest_folder
from tomoscout.options.names import Source, TomogramUri

SOURCE = Source("ribosome", "tomoscout", "1")
LABELS = Segmentation("targets", "tomoscout", "1", 10.0, True)
PROBABILITIES = Probabilities("wbp@10.0", "tomoscout-unet")


@pytest.fixture
def project(small: SmallProject) -> Project:
    small.add_run("a")
    return small.project()


# Tomograms


def shapes_of(project: Project, run: str) -> dict[str, tuple[int, ...] | None]:
    return {uri: found.shape for uri, found in project.tomograms(run).items()}


def test_tomograms_written_by_copick(small: SmallProject) -> None:
    volume = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    run = copick.from_file(str(small.copick)).new_run("a")
    run.new_voxel_spacing(10.0).new_tomogram("wbp").from_numpy(volume)
    run.new_voxel_spacing(13.48).new_tomogram("denoised").from_numpy(volume[:20])
    project = small.project()
    assert project.run_names() == ["a"]
    assert shapes_of(project, "a") == {"wbp@10.0": SHAPE, "denoised@13.48": (20, *SHAPE[1:])}
    np.testing.assert_array_equal(project.read_tomogram("a", "wbp@10.0"), volume)
    np.testing.assert_array_equal(project.read_tomogram("a", "denoised@13.48"), volume[:20])
    part = (slice(3, 9), slice(0, 32), slice(7, 8))
    np.testing.assert_array_equal(project.read_tomogram("a", "wbp@10.0", part), volume[part])
    np.testing.assert_array_equal(project.read_middle("a", "wbp@10.0"), volume[SHAPE[0] // 2])
    folder = small.overlay / "ExperimentRuns/a/VoxelSpacing10.000/wbp.zarr"
    assert project.folder_of("a", TomogramUri.parse("wbp@10.0")) == folder
    assert project.folder_of("a", TomogramUri.parse("wbp@20.0")) is None


def test_tomograms_come_as_float32(small: SmallProject) -> None:
    volume = np.arange(np.prod(SHAPE)).reshape(SHAPE) % 255 - 128
    small.write_tomogram("a", volume.astype(np.int8))
    read = small.project().read_tomogram("a", "wbp@10.0")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, volume)


def test_a_written_tomogram_is_replaced_whole(small: SmallProject) -> None:
    project = small.project()
    for size in (30, 20):
        volume = np.random.default_rng(size).normal(size=(size, 16, 16)).astype(np.float32)
        project.write_tomogram("new", "wbp@10.0", volume)
        [found] = copick.from_file(str(small.copick)).get_run("new").get_voxel_spacing(10.0).get_tomograms("wbp")
        np.testing.assert_array_equal(found.numpy(), volume)
        np.testing.assert_array_equal(project.read_tomogram("new", "wbp@10.0"), volume)


def test_a_tomogram_that_is_not_there(project: Project) -> None:
    with pytest.raises(TomoscoutError, match=r"^demo/a: no tomogram denoised@10.0; found: wbp@10.0$"):
        project.read_tomogram("a", "denoised@10.0")
    with pytest.raises(TomoscoutError, match=r"^demo/a: no tomogram wbp@7.5; found: wbp@10.0$"):
        project.read_tomogram("a", "wbp@7.5")
    with pytest.raises(TomoscoutError, match="no run 'b'"):
        project.read_tomogram("b", "wbp@10.0")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_voxel_that_is_not_a_number(small: SmallProject, value: float) -> None:
    volume = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    volume[20, 30, 39] = value
    small.write_tomogram("a", volume)
    with pytest.raises(TomoscoutError, match=r"^demo/a: tomogram wbp@10.0 holds NaN or infinite values$"):
        small.project().read_tomogram("a", "wbp@10.0")


def test_a_constant_tomogram(small: SmallProject) -> None:
    small.write_tomogram("a", np.full(SHAPE, 1.5, dtype=np.float32))
    with pytest.raises(TomoscoutError, match=r"^demo/a: tomogram wbp@10.0 is constant \(every voxel is 1.5\)$"):
        small.project().read_tomogram("a", "wbp@10.0")


@pytest.mark.parametrize("chunk", [(0, 0, 0), (1, 1, 1), (0, 1, 0)], ids=str)
def test_a_missing_chunk(small: SmallProject, chunk: tuple[int, int, int]) -> None:
    folder = small.add_run("a")
    folder.joinpath("0", *map(str, chunk)).unlink()
    message = r"^demo/a: tomogram wbp@10.0: truncated: 7 of 8 chunks are there"
    with pytest.raises(TomoscoutError, match=message):
        small.project().read_tomogram("a", "wbp@10.0")
    with pytest.raises(TomoscoutError, match=message):
        small.project().read_tomogram("a", "wbp@10.0", (slice(0, 2), slice(0, 2), slice(0, 2)))


@pytest.mark.parametrize("codec", ["blosc", "zlib", "gzip", "none"])
@pytest.mark.parametrize("damage", ["cut", "overwritten"])
def test_a_damaged_chunk(small: SmallProject, codec: str, damage: str) -> None:
    from numcodecs import Blosc, GZip, Zlib

    folder = small.add_run("a")
    volume = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    compressor = {"blosc": Blosc(), "zlib": Zlib(), "gzip": GZip(), "none": None}[codec]
    zarr.open_group(str(folder), mode="w").create_dataset(
        "0", data=volume, chunks=(12, 16, 20), dimension_separator="/", compressor=compressor
    )
    chunk = folder / "0" / "1" / "0" / "1"
    content = chunk.read_bytes()
    chunk.write_bytes(content[: len(content) // 2] if damage == "cut" else b"not a chunk")
    with pytest.raises(TomoscoutError, match=r"^demo/a: tomogram wbp@10.0: a chunk cannot be decoded") as caught:
        small.project().read_tomogram("a", "wbp@10.0")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"zarr_format": 3}', None])
def test_a_tomogram_without_readable_metadata(small: SmallProject, content: str | None) -> None:
    folder = small.add_run("a")
    small.add_run("a", uri="denoised@10.0")
    if content is None:
        (folder / "0" / ".zarray").unlink()
    else:
        (folder / "0" / ".zarray").write_text(content)
    assert shapes_of(small.project(), "a") == {"wbp@10.0": None, "denoised@10.0": SHAPE}
    with pytest.raises(TomoscoutError, match=r"^demo/a: tomogram wbp@10.0: no readable zarr array: "):
        small.project().read_tomogram("a", "wbp@10.0")


def test_a_volume_with_channels_is_no_tomogram(small: SmallProject) -> None:
    small.write_tomogram("a", np.zeros((2, *SHAPE), dtype=np.float32))
    assert shapes_of(small.project(), "a") == {"wbp@10.0": None}


# Picks

numbers = st.floats(-1e4, 1e4)


@given(st.lists(st.tuples(numbers, numbers, numbers, st.floats(0, 1)), max_size=4))
@settings(deadline=None, max_examples=20, derandomize=True)
def test_picks_come_back(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, ...]]) -> None:
    small = SmallProject(tmp_path_factory.mktemp("picks"))
    small.add_run("a")
    project = small.project()
    table = np.array(rows, dtype=float).reshape(-1, 4)
    project.write_picks("a", SOURCE, Picks.at(table[:, :3], table[:, 3]))
    for reader in (project, small.project()):
        picks = reader.read_picks("a", SOURCE)
        assert len(picks) == len(rows)
        np.testing.assert_array_equal(picks.positions, table[:, :3])
        np.testing.assert_array_equal(picks.scores, table[:, 3])
        np.testing.assert_array_equal(picks.transforms, np.tile(np.eye(4), (len(rows), 1, 1)))


def test_picks_are_read_as_copick_reads_them(small: SmallProject) -> None:
    small.add_run("a")
    small.add_picks("a", "ribosome:expert/0", [(1.0, 2.0, 3.0), (4.0, 5.0, 6.0)], [(0.5, 0.25, -1.0), (0, 0, 7.0)])
    [entry] = copick.from_file(str(small.copick)).get_run("a").get_picks("ribosome", "expert", "0")
    locations, transforms = entry.numpy()
    picks = small.project().read_picks("a", Source("ribosome", "expert", "0"))
    np.testing.assert_array_equal(picks.positions, locations + transforms[:, :3, 3])
    np.testing.assert_array_equal(picks.positions, [[1.5, 2.25, 2.0], [4.0, 5.0, 13.0]])
    assert not picks.transforms[:, :3, 3].any()


def test_fewer_picks_replace_more(project: Project) -> None:
    project.write_picks("a", SOURCE, Picks.at(np.ones((5, 3))))
    project.write_picks("a", SOURCE, Picks.at(np.zeros((0, 3))))
    assert len(project.read_picks("a", SOURCE)) == 0
    assert project.pick_sources("a") == [SOURCE]
    assert project.find_picks("a", SOURCE).total == 0


def test_picks_that_are_not_there_are_none(project: Project) -> None:
    assert len(project.read_picks("a", Source("ribosome", "nobody", "0"))) == 0


def test_picks_of_an_object_that_is_not_there(project: Project) -> None:
    with pytest.raises(TomoscoutError, match="no pickable object 'kinesin'"):
        project.write_picks("a", Source("kinesin", "tomoscout", "1"), Picks.at(np.ones((1, 3))))


def test_the_digest_of_picks_is_that_of_their_points(small: SmallProject) -> None:
    small.add_run("a")
    path = small.add_picks("a", "ribosome:expert/0", [(1.0, 2.0, 3.0)])
    source = Source("ribosome", "expert", "0")
    first = small.project().find_picks("a", source)[:2]
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"unit": "angstrom"}, indent=4))
    assert small.project().find_picks("a", source)[:2] == first == (1, first[1])
    values["points"][0]["location"]["z"] = 3.5
    path.write_text(json.dumps(values))
    assert small.project().find_picks("a", source).digest != first[1]


@pytest.mark.parametrize(
    "point",
    [
        {},
        {"location": None},
        {"location": {"x": 1.0, "y": 2.0}},
        {"location": {"x": 1.0, "y": "here", "z": 2.0}},
        {"location": {"x": 1.0, "y": 2.0, "z": 3.0}, "transformation_": np.eye(3).tolist()},
        {"location": {"x": 1.0, "y": 2.0, "z": 3.0}, "transformation_": [1, 2, 3]},
        {"location": {"x": 1.0, "y": 2.0, "z": 3.0}, "score": "high"},
        "here",
        None,
    ],
    ids=str,
)
def test_a_malformed_point(small: SmallProject, point: object) -> None:
    small.add_run("a")
    path = small.add_picks("a", "ribosome:expert/0", [(1.0, 2.0, 3.0)])
    values = json.loads(path.read_text())
    values["points"].append(point)
    path.write_text(json.dumps(values))
    with pytest.raises(TomoscoutError, match=r"^demo/a: picks ribosome:expert/0: a point is malformed"):
        small.project().read_picks("a", Source("ribosome", "expert", "0"))


def test_a_position_that_is_not_a_number(small: SmallProject) -> None:
    small.add_run("a")
    small.add_picks("a", "ribosome:expert/0", [(1.0, float("nan"), 3.0)])
    source = Source("ribosome", "expert", "0")
    with pytest.raises(TomoscoutError, match=r"^demo/a: picks ribosome:expert/0: a position is NaN or infinite"):
        small.project().read_picks("a", source)
    with pytest.raises(TomoscoutError, match=r"^demo/a: picks ribosome:expert/0: a value is NaN or infinite"):
        small.project().find_picks("a", source)


def test_a_score_that_is_missing_is_one(small: SmallProject) -> None:
    small.add_run("a")
    path = small.add_picks("a", "ribosome:expert/0", [(1.0, 2.0, 3.0)] * 2)
    values = json.loads(path.read_text())
    del values["points"][0]["score"], values["points"][0]["transformation_"]
    values["points"][1]["score"] = None
    path.write_text(json.dumps(values))
    assert small.project().read_picks("a", Source("ribosome", "expert", "0")).scores.tolist() == [1.0, 1.0]


# Segmentations


def test_segmentations_come_back_and_are_replaced(small: SmallProject) -> None:
    small.add_run("a")
    project = small.project()
    for number, kind in enumerate((np.uint16, np.uint8)):
        labels = np.random.default_rng(number).integers(0, 200, size=SHAPE).astype(kind)
        written = project.write_segmentation("a", LABELS, labels, {"number": number})
        assert project.segmentations("a") == [LABELS]
        assert project.digest_written("a", LABELS) == written
        np.testing.assert_array_equal(project.read_segmentation("a", LABELS), labels)
        part = (slice(2, 4), slice(5, 9), slice(0, 40))
        np.testing.assert_array_equal(project.read_segmentation("a", LABELS, part), labels[part])
        [found] = copick.from_file(str(small.copick)).get_run("a").get_segmentations(name="targets")
        np.testing.assert_array_equal(found.numpy(), labels)
        assert found.is_multilabel
        assert zarr.open_group(str(small.target_folder("a")), mode="r").attrs["tomoscout"]["number"] == number
    project.delete("a", LABELS)
    assert project.made_from("a", LABELS) is None
    project.delete("a", LABELS)


def test_a_write_that_fails_midway_leaves_the_old_volume(small: SmallProject) -> None:
    small.add_run("a")
    project = small.project()
    labels = np.ones(SHAPE, dtype=np.uint8)
    project.write_segmentation("a", LABELS, labels, {})
    before = digest_folder(small.overlay)
    with pytest.raises(TypeError):
        project.write_segmentation("a", LABELS, labels * 2, {"not JSON": object()})
    assert digest_folder(small.overlay) == before


def test_a_process_that_is_killed_while_it_writes_leaves_the_old_volume(small: SmallProject) -> None:
    small.add_run("a")
    project = small.project()
    labels = np.random.default_rng(0).integers(0, 4, size=SHAPE).astype(np.uint8)
    project.write_segmentation("a", LABELS, labels, {})
    script = f"""
import os, signal
from pathlib import Path
import numpy as np, zarr
from tomoscout.data.project import Project
from tomoscout.data.written import Segmentation
zarr.attrs.Attributes.update = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
project = Project("demo", Path({str(small.copick)!r}))
project.write_segmentation("a", {LABELS!r}, np.zeros({SHAPE}, dtype=np.uint8), {{}})
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode < 0
    fresh = small.project()
    assert fresh.segmentations("a") == [LABELS]
    np.testing.assert_array_equal(fresh.read_segmentation("a", LABELS), labels)
    fresh.write_segmentation("a", LABELS, labels, {})
    folder = small.target_folder("a")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "nothing of the killed write stays"


def test_a_segmentation_that_is_not_there(small: SmallProject) -> None:
    small.add_run("a")
    small.add_segmentation("a", "membrane:expert/0", np.ones(SHAPE))
    message = r"^demo/a: no segmentation targets:tomoscout/1@10.0\?multilabel=true; found: membrane:expert/0@10.0$"
    with pytest.raises(TomoscoutError, match=message):
        small.project().read_segmentation("a", LABELS)


def test_missing_chunks_of_a_segmentation_can_be_allowed(small: SmallProject) -> None:
    small.add_run("a")
    folder = small.add_segmentation("a", "membrane:expert/0", np.ones(SHAPE))
    (folder / "0" / "0" / "0" / "0").unlink()
    wanted = Segmentation("membrane", "expert", "0", 10.0, False)
    with pytest.raises(TomoscoutError, match=r"segmentation membrane:expert/0@10.0: truncated: 7 of 8 chunks"):
        small.project().read_segmentation("a", wanted)
    labels = small.project().read_segmentation("a", wanted, allow_missing_chunks=True)
    expected = np.ones(SHAPE)
    expected[:12, :16, :20] = 0
    np.testing.assert_array_equal(labels, expected)


def test_the_digest_of_a_segmentation_is_of_its_content(small: SmallProject) -> None:
    small.add_run("a")
    values = np.random.default_rng(0).random(SHAPE) < 0.5
    folder = small.add_segmentation("a", "membrane:expert/0", values)
    wanted = Segmentation("membrane", "expert", "0", 10.0, False)
    first = small.project().digest_segmentation("a", wanted)
    os.utime(folder / "0" / "1" / "1" / "1", ns=(1, 1))
    assert small.project().digest_segmentation("a", wanted) == first
    small.add_segmentation("a", "membrane:expert/0", ~values)
    assert small.project().digest_segmentation("a", wanted) != first


# Probabilities


def test_probabilities_come_back(small: SmallProject) -> None:
    small.add_run("a")
    project = small.project()
    values = np.random.default_rng(0).integers(0, 256, size=(3, *SHAPE)).astype(np.uint8)
    assert project.made_from("a", PROBABILITIES) is None
    with pytest.raises(TomoscoutError, match=r"no probabilities tomoscout-unet of wbp@10.0; run the segment stage"):
        project.read_probabilities("a", PROBABILITIES)
    written = project.write_probabilities("a", PROBABILITIES, values, {})
    assert project.digest_written("a", PROBABILITIES) == written
    np.testing.assert_array_equal(small.project().read_probabilities("a", PROBABILITIES), values)
    for label in (1, 2, 3):
        np.testing.assert_array_equal(project.read_probabilities("a", PROBABILITIES, label), values[label - 1])
    with pytest.raises(TomoscoutError, match=r"of wbp@10\.0: no class 4; run the segment stage again"):
        project.read_probabilities("a", PROBABILITIES, 4)
    project.delete("a", PROBABILITIES)
    assert small.project().made_from("a", PROBABILITIES) is None


def test_one_class_takes_the_memory_of_one(small: SmallProject) -> None:
    small.add_run("a")
    values = np.random.default_rng(0).integers(0, 256, size=(6, 64, 64, 64)).astype(np.uint8)
    project = small.project()
    project.write_probabilities("a", PROBABILITIES, values, {})
    project.read_probabilities("a", PROBABILITIES, 1)
    tracemalloc.start()
    project.read_probabilities("a", PROBABILITIES, 5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert values[0].nbytes <= peak < 3 * values[0].nbytes


# Projects


def test_a_project_made_here_opens_in_copick(tmp_path: Path) -> None:
    objects = [
        PickableObject("ribosome", True, 7, 150.0, (1, 2, 3, 255)),
        PickableObject("membrane", False, 2, None, (4, 5, 6, 255)),
    ]
    path = create_project(tmp_path / "new", objects, "new")
    assert list(read_objects(path).values()) == objects
    assert Project("new", path).objects == {entry.name: entry for entry in objects}
    root = copick.from_file(str(path))
    assert [(entry.name, entry.is_particle, entry.label) for entry in root.pickable_objects] == [
        ("ribosome", True, 7),
        ("membrane", False, 2),
    ]
    assert root.get_object("ribosome").radius == 150.0
    assert Project("new", path).run_names() == []


def test_static_and_overlay_are_one_project(tmp_path: Path) -> None:
    small = SmallProject(tmp_path, static=True)
    small.add_run("a")
    small.add_picks("a", "ribosome:expert/0", [(1.0, 2.0, 3.0)])
    project = small.project()
    project.write_picks("a", SOURCE, Picks.at(np.ones((2, 3))))
    project.write_tomogram("b", "wbp@10.0", np.random.default_rng(0).normal(size=SHAPE).astype(np.float32))
    again = small.project()
    assert again.run_names() == ["a", "b"]
    assert again.pick_sources("a") == [Source("ribosome", "expert", "0"), SOURCE]
    assert len(again.read_picks("a", Source("ribosome", "expert", "0"))) == 1
    assert sorted(path.name for path in (small.static / "ExperimentRuns").iterdir()) == ["a"]


def test_names_that_copick_cannot_read_are_passed_over_and_told(small: SmallProject) -> None:
    tomogram = small.add_run("a")
    strays = [small.add_picks("a", "ribosome:expert/0", []).with_name(name) for name in ("notes.json", "a_b_c_d.json")]
    for stray in strays:
        stray.write_text("{}")
    odd = [tomogram.parent.with_name(name) for name in ("VoxelSpacing", "VoxelSpacingfine")]
    for folder in odd:
        folder.mkdir()
    project = small.project()
    assert project.pick_sources("a") == [Source("ribosome", "expert", "0")]
    assert shapes_of(project, "a") == {"wbp@10.0": SHAPE}
    assert project.passed_over("a") == sorted(map(str, [*strays, *odd]))


def test_equal_volumes_are_written_as_equal_bytes(tmp_path: Path) -> None:
    config = create_project(tmp_path, [PickableObject("ribosome", True, 1, 150.0, (1, 2, 3, 255))], "bytes")
    project = Project("bytes", config)
    project.write_tomogram("a", "wbp@10.0", np.arange(8.0).reshape(2, 2, 2))
    labels = np.random.default_rng(0).integers(0, 3, (40, 300, 300)).astype(np.uint8)
    labels[:, :150] = 0
    wanted = Segmentation("targets", "tomoscout", "1", 10.0, True)
    assert len({project.write_segmentation("a", wanted, labels, {}) for _ in range(5)}) == 1


def test_copick_and_zarr_are_imported_behind_one_door() -> None:
    source = Path(tomoscout.__file__).parent
    for library, modules in (
        # Our commands in copick's command line take its options, which know nothing of projects.
        (r"copick(?!\.cli\.util import)", ["copick_listing", "copick_project"]),
        ("zarr|numcodecs", ["whole_blosc", "zarr_files"]),
    ):
        form = re.compile(rf"^\s*(import|from) ({library})\b", re.MULTILINE)
        found = [path.stem for path in sorted(source.rglob("*.py")) if form.search(path.read_text())]
        assert found == modules


@pytest.mark.parametrize(
    ("spacing", "shape"), [(10.0, SHAPE), (5.0, (47, 60, 90)), (20.0, (13, 16, 18)), (13.7, (18, 20, 33))]
)
def test_a_mask_is_read_by_regions_on_the_grid_of_a_tomogram(
    small: SmallProject, spacing: float, shape: tuple[int, ...]
) -> None:
    """At any voxel spacing; where it is shorter than the tomogram, no voxel is in it."""
    small.add_run("a")
    stored = np.random.default_rng(0).integers(0, 3, shape).astype(np.uint8)
    small.add_segmentation("a", "lamella:me/1", stored, spacing)
    mask = small.project().open_mask("a", Segmentation("lamella", "me", "1", spacing, False), 10.0)
    whole = np.zeros(SHAPE, dtype=bool)
    for voxel in np.ndindex(SHAPE):
        # Half-way the lower one.
        nearest = tuple(math.ceil(index * 10 / spacing - 0.5 - 1e-6) for index in voxel)
        whole[voxel] = all(at < size for at, size in zip(nearest, shape, strict=True)) and stored[nearest] > 0
    for region in pieces(SHAPE, (7, 40, 11)):
        np.testing.assert_array_equal(mask.read(region), whole[region])
    assert whole.any()
