"""Preparing tomograms for a network, and keeping them where there is room."""

from __future__ import annotations

import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.project import largest_file
from tomoscout.learning import volumes
from tomoscout.learning.normalisation import Intensities, sampled_every, standardise
from tomoscout.learning.sampling import Crop, cut
from tomoscout.learning.volumes import LabelledVolume, Storage, Tier, labelled_volume, remove_volumes
from tomoscout.machine.errors import TomoscoutError

torch.set_num_threads(1)
checked = settings(deadline=None, max_examples=30, derandomize=True)
CPU = torch.device("cpu")
TIERS: tuple[Tier, ...] = ("device", "memory", "files")
Pair = tuple[np.ndarray, np.ndarray]


def made_up(shape: tuple[int, ...] = (16, 24, 20), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@given(st.floats(0.01, 1e4), st.floats(-10, 10), st.integers(0, 100))
@checked
def test_scale_and_offset_do_not_matter(scale: float, offset: float, seed: int) -> None:
    volume = made_up((8, 9, 10), seed)
    changed = volume * np.float32(scale) + np.float32(offset * scale)
    np.testing.assert_allclose(standardise(changed), standardise(volume), atol=1e-4)


def test_mean_is_zero_and_deviation_one() -> None:
    volume = made_up() * 40 - 7
    before = volume.copy()
    prepared = standardise(volume)
    assert prepared.dtype == np.float32
    assert abs(prepared.mean(dtype=np.float64)) < 1e-5
    assert abs(prepared.std(dtype=np.float64) - 1) < 1e-5
    np.testing.assert_array_equal(volume, before)


def test_against_double_precision() -> None:
    volume = made_up() * 3 + 100
    values = volume.astype(np.float64)
    limited = np.clip(values, *np.percentile(values, [0.1, 99.9]))
    np.testing.assert_allclose(standardise(volume), (limited - limited.mean()) / limited.std(), atol=1e-4)


def test_gold_beads_do_not_set_the_scale() -> None:
    volume = made_up()
    beaded = volume.copy()
    beads = np.random.default_rng(1).choice(volume.size, volume.size // 2000, replace=False)
    beaded.ravel()[beads] = -1e6
    others = np.setdiff1d(np.arange(volume.size), beads)
    prepared = standardise(beaded)
    assert abs(prepared.ravel()[others] - standardise(volume).ravel()[others]).max() < 0.15
    assert abs(prepared).max() < 10


def test_percentiles_of_a_large_volume_are_taken_from_a_part_of_it() -> None:
    volume = made_up((162, 162, 162))
    limits = np.percentile(volume, [0.1, 99.9])
    prepared = standardise(volume)
    assert abs(prepared.mean(dtype=np.float64)) < 5e-3
    assert abs(prepared.std(dtype=np.float64) - 1) < 5e-3
    scale = np.clip(volume, *limits).std(dtype=np.float64)
    np.testing.assert_allclose([prepared.min(), prepared.max()], limits / scale, atol=0.06)


def test_a_constant_volume_becomes_zero() -> None:
    assert not standardise(np.full((4, 4, 4), 3, dtype=np.float32)).any()


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 1), (31, 40, 57), (169, 163, 161)])
def test_parts_are_prepared_as_the_whole(shape: tuple[int, ...]) -> None:
    volume = made_up(shape) + 5000
    every = sampled_every(shape)
    rows = [volume[start : start + 7] for start in range(0, shape[0], 7)]
    sample = np.concatenate([part[-7 * number % every :: every] for number, part in enumerate(rows)])
    intensities = Intensities.of(sample[:, ::every, ::every])
    np.testing.assert_array_equal(np.concatenate([intensities.prepare(part) for part in rows]), standardise(volume))


@pytest.mark.parametrize("shape", [(512, 2048, 2048), (184, 630, 630), (2**12, 2**12), (161, 162, 163)])
def test_a_sample_is_large_and_bounded(shape: tuple[int, ...]) -> None:
    every = sampled_every(shape)
    size = np.prod([-(-n // every) for n in shape])
    assert 2**19 < size < 1.2 * 2**24
    assert every >= 2


def traced(work: Callable[[], object]) -> int:
    """Most bytes that NumPy holds at once for some work."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_preparing_takes_little_more_than_one_copy() -> None:
    volume = made_up((170, 170, 170))
    assert traced(lambda: standardise(volume)) < 1.3 * volume.nbytes


# Where voxels live.


def pair(shape: tuple[int, ...] = (16, 24, 20), seed: int = 0, classes: int = 3) -> Pair:
    labels = np.random.default_rng(seed + 1).integers(0, classes + 1, shape).astype(np.uint8)
    return made_up(shape, seed), labels


class Source:
    """A tomogram and its target that know how often they were read."""

    def __init__(self, *values: np.ndarray) -> None:
        self.values = values or pair()
        self.reads = 0

    def __call__(self) -> Pair:
        self.reads += 1
        tomogram, labels = self.values
        return tomogram.copy(), labels.copy()


def storage(folder: Path, tier: Tier = "files", classes: int = 3) -> Storage:
    return Storage(tier, CPU, classes, folder / "volumes")


def same(first: LabelledVolume, second: LabelledVolume) -> bool:
    return (
        (first.name, first.ignore) == (second.name, second.ignore)
        and torch.equal(first.intensities, second.intensities)
        and torch.equal(first.labels, second.labels)
    )


def test_crops_are_the_same_wherever_the_voxels_live(tmp_path: Path) -> None:
    runs = {f"demo/run {n} wbp@10.0": pair((9 + n, 24, 20), n) for n in range(3)}
    crops = [Crop(0, (0, 8, 4)), Crop(2, (1, 0, 3)), Crop(1, (0, 14, 0)), Crop(2, (0, 3, 10))]
    cuts = []
    for tier in TIERS:
        kept = [
            labelled_volume(name, name, Source(*values), (10, 10, 10), storage(tmp_path, tier))
            for name, values in runs.items()
        ]
        cuts.append(cut(kept, crops, (10, 10, 10), CPU))
    for intensities, labels in cuts[1:]:
        assert torch.equal(intensities, cuts[0][0])
        assert torch.equal(labels, cuts[0][1])
    tomogram, labels = runs["demo/run 2 wbp@10.0"]
    np.testing.assert_allclose(cuts[0][0][1, 0], standardise(tomogram)[1:11, :10, 3:13], atol=2e-3)
    np.testing.assert_array_equal(cuts[0][1][1], labels[1:11, :10, 3:13])


@pytest.mark.parametrize("tier", TIERS)
def test_a_volume_smaller_than_the_patch_is_padded_at_its_far_ends(tmp_path: Path, tier: Tier) -> None:
    tomogram, labels = pair((5, 20, 9))
    volume = labelled_volume("a run", "", Source(tomogram, labels), (8, 16, 12), storage(tmp_path, tier))
    assert volume.intensities.shape == (1, *volume.labels.shape) == (1, 8, 20, 12)
    assert volume.intensities.dtype == torch.float16
    assert volume.labels.dtype == torch.uint8
    inner = (slice(5), slice(20), slice(9))
    np.testing.assert_array_equal(volume.intensities.numpy()[0][inner], standardise(tomogram).astype(np.float16))
    np.testing.assert_array_equal(volume.labels.numpy()[inner], labels)
    outside = np.ones((8, 20, 12), dtype=bool)
    outside[inner] = False
    assert (volume.labels.numpy()[outside] == volume.ignore).all()
    assert not volume.intensities.numpy()[0][outside].any()


@pytest.mark.parametrize("tier", TIERS)
def test_a_volume_that_holds_the_patch_is_not_padded(tmp_path: Path, tier: Tier) -> None:
    volume = labelled_volume("a run", "", Source(), (16, 4, 20), storage(tmp_path, tier))
    assert volume.labels.shape == (16, 24, 20)
    assert not (volume.labels == volume.ignore).any()


@pytest.mark.parametrize(
    ("kind", "classes", "size"), [(np.uint8, 254, 1), (np.uint16, 255, 4), (np.uint16, 300, 4), (np.int64, 3, 1)]
)
def test_the_ignored_label_is_no_label(tmp_path: Path, kind: type, classes: int, size: int) -> None:
    labels = np.zeros((4, 4, 4), dtype=kind)
    labels[1, 2, 3] = classes
    where = storage(tmp_path, "memory", classes)
    volume = labelled_volume("a run", "", Source(made_up((4, 4, 4)), labels), (6, 4, 4), where)
    assert int(volume.labels[1, 2, 3]) == classes != volume.ignore == where.ignore
    assert int((volume.labels == volume.ignore).sum()) == 2 * 4 * 4
    assert volume.intensities.nbytes + volume.labels.nbytes == where.size((4, 4, 4), (6, 4, 4)) == 96 * (2 + size)


def test_a_target_of_another_shape_is_refused(tmp_path: Path) -> None:
    source = Source(made_up((4, 4, 4)), np.zeros((4, 4, 5), dtype=np.uint8))
    with pytest.raises(TomoscoutError, match=r"run-7.*\(4, 4, 4\).*\(4, 4, 5\)"):
        labelled_volume("run-7", "", source, (4, 4, 4), storage(tmp_path))


@pytest.mark.parametrize("label", [-1, 4, 255])
def test_a_label_that_is_no_class_is_refused(tmp_path: Path, label: int) -> None:
    labels = np.zeros((4, 4, 4), dtype=np.int16)
    labels[0, 0, 1] = label
    with pytest.raises(TomoscoutError, match=f"run-7: the target holds label {label}, expected 0 to 3"):
        labelled_volume("run-7", "", Source(made_up((4, 4, 4)), labels), (4, 4, 4), storage(tmp_path))


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("patch", [(16, 16, 16), (180, 16, 16)])
def test_at_no_time_are_there_much_more_than_two_copies(tmp_path: Path, tier: Tier, patch: tuple[int, ...]) -> None:
    shape = (170, 170, 170)
    labels = np.zeros(shape, dtype=np.uint8)

    def read() -> Pair:
        return np.random.default_rng(0).normal(size=(170, 1, 170)).astype(np.float32).repeat(170, axis=1), labels

    # PyTorch's copies in half precision are not traced: a half while no other is there but the prepared one.
    peak = traced(lambda: labelled_volume("a run", "", read, patch, storage(tmp_path, tier)))
    assert peak < 2.3 * labels.size * 4


# Mapped files.


def files(folder: Path, pattern: str = "*") -> list[Path]:
    return sorted((folder / "volumes").glob(pattern))


def test_files_are_mapped_and_cannot_be_changed_by_accident(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        volume = labelled_volume("a run", "", Source(), (8, 8, 8), storage(tmp_path))
    assert len(files(tmp_path)) == 3
    mapped = Path("/proc/self/maps").read_text()
    for path in files(tmp_path, "*.npy"):
        permissions = [line.split()[1] for line in mapped.splitlines() if line.endswith(str(path))]
        assert permissions and not any("w" in entry for entry in permissions)
    # Crops are copies.
    intensities, labels = cut([volume], [Crop(0, (0, 0, 0))], (8, 8, 8), CPU)
    intensities += 1
    labels += 1
    assert same(volume, labelled_volume("a run", "", Source(), (8, 8, 8), storage(tmp_path, "memory")))


def test_a_resumed_training_reads_nothing_again(tmp_path: Path) -> None:
    source = Source()
    first = labelled_volume("a run", "abc", source, (8, 8, 8), storage(tmp_path))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files(tmp_path)}
    second = labelled_volume("a run", "abc", source, (8, 8, 8), storage(tmp_path))
    assert source.reads == 1
    assert same(first, second)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files(tmp_path)} == before


def test_volumes_do_not_take_each_others_files(tmp_path: Path) -> None:
    sources = {f"{project}/run {'x' * 300} wbp@{n}.0": Source(*pair(seed=n)) for n in (1, 2) for project in "ab"}
    kept = {name: labelled_volume(name, "", source, (8, 8, 8), storage(tmp_path)) for name, source in sources.items()}
    for name, source in sources.items():
        assert same(kept[name], labelled_volume(name, "", source, (8, 8, 8), storage(tmp_path, "memory")))


@pytest.mark.parametrize("what", ["inputs", "patch", "classes", "standardise"])
def test_files_made_from_something_else_are_made_again(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled_volume("a run", "abc", Source(*pair(seed=5)), (8, 8, 8), storage(tmp_path))
    if what == "standardise":
        monkeypatch.setattr(volumes, "STANDARDISE_VERSION", volumes.STANDARDISE_VERSION + 1)
    inputs = "abd" if what == "inputs" else "abc"
    patch = (8, 8, 30) if what == "patch" else (8, 8, 8)
    where = storage(tmp_path, classes=300 if what == "classes" else 3)
    source = Source()
    found = labelled_volume("a run", inputs, source, patch, where)
    assert source.reads == 1
    assert same(found, labelled_volume("a run", "", source, patch, storage(tmp_path, "memory", where.largest_label)))
    assert len(files(tmp_path)) == 3
    assert capsys.readouterr().err == ""


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def change_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


def write_nonsense(path: Path) -> None:
    path.write_bytes(b"[1, 2]")


DAMAGE: list[Callable[[Path], None]] = [cut_short, change_a_bit, write_nonsense, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("pattern", ["*.intensities.npy", "*.labels.npy", "*.json"])
def test_damaged_files_are_made_again(
    tmp_path: Path, pattern: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    source = Source()
    labelled_volume("a run", "abc", source, (8, 8, 8), storage(tmp_path))
    before = {path: path.read_bytes() for path in files(tmp_path)}
    damage(files(tmp_path, pattern)[0])
    found = labelled_volume("a run", "abc", source, (8, 8, 8), storage(tmp_path))
    assert source.reads == 2
    assert same(found, labelled_volume("a run", "", source, (8, 8, 8), storage(tmp_path, "memory")))
    assert {path: path.read_bytes() for path in files(tmp_path)} == before
    said = capsys.readouterr().err
    without_manifest = pattern == "*.json" and damage is Path.unlink
    assert said.count("\n") == (0 if without_manifest else said.count("a run is damaged there and made again")) <= 1


@pytest.mark.parametrize("room", [0, 5000, 20_000])
def test_a_full_disk_is_one_clear_line(tmp_path: Path, room: int) -> None:
    """16 × 24 × 20 voxels are 15,488 bytes of intensities, 7,808 of labels."""
    before = labelled_volume("a run", "", Source(), (8, 8, 8), storage(tmp_path))
    bigger = Source(*pair((32, 24, 20), 3))
    with largest_file(room), pytest.raises(TomoscoutError) as refused:
        labelled_volume("another run", "", bigger, (8, 8, 8), storage(tmp_path))
    message = str(refused.value)
    assert str(tmp_path / "volumes") in message and "another run" in message and "free some space" in message
    assert "\n" not in message
    assert not files(tmp_path, ".*")
    # What was there is as it was, and the other is made once there is room.
    source = Source()
    assert same(before, labelled_volume("a run", "", source, (8, 8, 8), storage(tmp_path)))
    assert source.reads == 0
    made = labelled_volume("another run", "", bigger, (8, 8, 8), storage(tmp_path))
    assert same(made, labelled_volume("another run", "", bigger, (8, 8, 8), storage(tmp_path, "memory")))


def test_a_volume_whose_writing_broke_off_is_not_taken_for_whole(tmp_path: Path) -> None:
    """New inputs, and no room: the old manifest must not stand beside half of the new files."""
    labelled_volume("a run", "old", Source(*pair(seed=4)), (8, 8, 8), storage(tmp_path))
    with largest_file(10_000), pytest.raises(TomoscoutError):
        labelled_volume("a run", "new", Source(), (8, 8, 8), storage(tmp_path))
    old = Source(*pair(seed=4))
    found = labelled_volume("a run", "old", old, (8, 8, 8), storage(tmp_path))
    assert same(found, labelled_volume("a run", "", old, (8, 8, 8), storage(tmp_path, "memory")))


def test_files_go_at_the_end_and_those_not_needed_at_the_start(tmp_path: Path) -> None:
    kept = {name: labelled_volume(name, "", Source(), (8, 8, 8), storage(tmp_path)) for name in ("a", "b", "c")}
    (tmp_path / "volumes" / ".left-by-a-killed-writer.tmp").write_text("")
    remove_volumes(tmp_path / "volumes", keep=["a", "c", "d"])
    assert len(files(tmp_path)) == 6
    source = Source()
    for name in ("a", "b", "c"):
        labelled_volume(name, "", source, (8, 8, 8), storage(tmp_path))
    assert source.reads == 1
    remove_volumes(tmp_path / "volumes")
    assert not (tmp_path / "volumes").exists()
    assert same(kept["a"], labelled_volume("a", "", source, (8, 8, 8), storage(tmp_path, "memory")))
    remove_volumes(tmp_path / "volumes")
