"""Every format out and in again: nothing moves, turns or gets lost but what a format cannot hold."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.formats import GRIDS, WITHOUT, frame, some_sets, turned_by
from tomoscout.data.formats import FORMATS, format_of
from tomoscout.data.formats.base import Frame, Grid, PickSet, TiltSeries
from tomoscout.data.formats.star import read_tilt_series
from tomoscout.data.picks import Picks

BY_NAME = sorted(FORMATS)


def parts_of(name: str, sets: list[PickSet]) -> list[list[PickSet]]:
    """The sets that go into one file."""
    kind = FORMATS[name]
    parts: dict[tuple[str, str], list[PickSet]] = {}
    for entry in sets:
        key = (entry.run if kind.one_run else "", "" if kind.objects else entry.name)
        parts.setdefault(key, []).append(entry)
    return list(parts.values())


def there_and_back(name: str, sets: list[PickSet], folder: Path, out: Frame, back: Frame) -> list[PickSet]:
    """What is read of the files that are written of the sets, with the object where a file has none."""
    kind, found = FORMATS[name], []
    for number, part in enumerate(parts_of(name, sets)):
        # A file of one run bears its name.
        path = folder / str(number) / f"{part[0].run if kind.one_run else 'all'}{kind.suffix}"
        path.parent.mkdir()
        kind.write(path, part, out)
        assert sorted(path.parent.iterdir()) == sorted(kind.files(path))
        found += [entry._replace(name=entry.name or part[0].name) for entry in format_of(path).read(path, back)]
    return found


def run_of(name: str) -> str:
    """The run that a name in a file means."""
    return name.removesuffix(".tomostar")


class Warped(dict):
    """Grids that are also found by Warp's names."""

    def __init__(self, grids: dict[str, Grid]) -> None:
        super().__init__({name: grid for run, grid in grids.items() for name in (run, f"{run}.tomostar")})


def assert_same(name: str, found: list[PickSet], expected: list[PickSet], voxel: float = 0.01) -> None:
    kind = FORMATS[name]
    assert {(run_of(e.run), e.name) for e in found} == {(e.run, e.name) for e in expected}
    for entry in expected:
        [picks] = [e.picks for e in found if (run_of(e.run), e.name) == (entry.run, entry.name)]
        moved = np.abs(picks.positions - entry.picks.positions).max() / GRIDS[entry.run].voxel_spacing
        assert moved < voxel, (entry.run, moved)
        if kind.angles:
            assert turned_by(picks.rotations, entry.picks.rotations).max() < 0.01
        np.testing.assert_allclose(picks.scores, entry.picks.scores if kind.score else 1, atol=1e-6)
        np.testing.assert_array_equal(picks.instances, entry.picks.instances if kind.instance else 0)
        np.testing.assert_array_equal(picks.transforms[:, :3, 3], 0)


@pytest.mark.parametrize("name", BY_NAME)
def test_with_the_tilt_series(name: str, tmp_path: Path) -> None:
    sets, both = some_sets(), frame(Warped(GRIDS))
    assert_same(name, there_and_back(name, sets, tmp_path, both, both), sets)


@pytest.mark.parametrize("name", sorted({*BY_NAME} - {"relion4"}))
def test_without_the_tilt_series(name: str, tmp_path: Path) -> None:
    sets, both = some_sets(), frame(Warped(WITHOUT))
    assert_same(name, there_and_back(name, sets, tmp_path, both, both), sets)


@pytest.mark.parametrize("name", [name for name in BY_NAME if FORMATS[name].in_pixels])
def test_with_a_pixel_size_that_is_given(name: str, tmp_path: Path) -> None:
    sets, both = some_sets(), frame(Warped(WITHOUT), pixel_size=2.7183)
    assert_same(name, there_and_back(name, sets, tmp_path, both, both), sets)


@pytest.mark.parametrize("name", ["relion4", "relion3", "warp", "dynamo", "imod", "eman2"])
def test_files_that_state_their_pixel_size_need_none_to_be_read(name: str, tmp_path: Path) -> None:
    out, back = frame(Warped(WITHOUT), pixel_size=2.7183), frame(Warped(WITHOUT))
    sets = some_sets()
    assert_same(name, there_and_back(name, sets, tmp_path, out, back), sets)


@pytest.mark.parametrize("origin", [0, 1])
@pytest.mark.parametrize("name", ["dynamo", "em"])
def test_voxels_are_counted_from_the_number_given(name: str, origin: int, tmp_path: Path) -> None:
    sets, counted = some_sets(), frame(origin=origin)
    assert_same(name, there_and_back(name, sets, tmp_path, counted, counted), sets)
    (tmp_path / "other").mkdir()
    [wrong, *_] = there_and_back(name, sets, tmp_path / "other", counted, frame(origin=1 - origin))
    moved = (wrong.picks.positions - sets[0].picks.positions) / GRIDS["TS_01"].voxel_spacing
    np.testing.assert_allclose(moved, 2 * origin - 1, atol=0.01)


@pytest.mark.parametrize("name", BY_NAME)
def test_equal_picks_give_equal_files(name: str, tmp_path: Path) -> None:
    [part, *_] = parts_of(name, some_sets())
    kind, texts = FORMATS[name], []
    for folder in ("one", "two"):
        path = tmp_path / folder / f"{part[0].run}{kind.suffix}"
        kind.write(path, part, frame())
        texts.append([file.read_bytes() for file in kind.files(path)])
    assert texts[0] == texts[1]
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("name", BY_NAME)
def test_a_single_pick(name: str, tmp_path: Path) -> None:
    sets = some_sets((1, 1))
    assert_same(name, there_and_back(name, sets, tmp_path, frame(), frame(Warped(GRIDS))), sets)


def test_binned_sizes_are_not_those_of_the_tilt_series() -> None:
    """Half of 93 voxels of 13.48 Å is not half of 371 pixels of 3.37 Å: what tomograms.star is for."""
    difference = (GRIDS["TS_2"].centre - WITHOUT["TS_2"].centre) / 3.37
    np.testing.assert_allclose(difference, [0, -0.5, -0.5], atol=1e-9)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    size=st.tuples(*[st.integers(20, 6000)] * 3),
    binning=st.floats(1, 16),
    pixel_size=st.floats(0.5, 10),
    places=st.lists(st.tuples(*[st.floats(-0.2, 1.2)] * 3), min_size=1, max_size=4),
)
def test_any_size_and_binning(
    size: tuple[int, int, int], binning: float, pixel_size: float, places: list[tuple[float, float, float]]
) -> None:
    x, y, z = (max(1, int(length / binning)) for length in size)
    grid = Grid((z, y, x), binning * pixel_size, TiltSeries(size, pixel_size))
    picks = Picks.at(np.array(places) * np.array(size) * pixel_size)
    both = frame({"TS": grid, "TS.tomostar": grid})
    with tempfile.TemporaryDirectory() as folder:
        for name in ("relion5", "relion4", "warp", "eman2", "imod"):
            path = Path(folder, f"TS{FORMATS[name].suffix}")
            FORMATS[name].write(path, [PickSet("TS", "ribosome", picks)], both)
            [found] = FORMATS[name].read(path, both)
            assert np.abs(found.picks.positions - picks.positions).max() < 0.01 * grid.voxel_spacing, name


def test_tomograms_star_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tomograms.star"
    rows = [
        " ".join(map(str, [run, *series.size, series.pixel_size, "one", 300.0]))
        for run, series in ((run, grid.tilt_series) for run, grid in GRIDS.items())
        if series
    ]
    columns = [
        "TomoName",
        "TomoSizeX",
        "TomoSizeY",
        "TomoSizeZ",
        "TomoTiltSeriesPixelSize",
        "OpticsGroupName",
        "Voltage",
    ]
    loop = "\n".join(f"_rln{name} #{number}" for number, name in enumerate(columns, 1))
    path.write_text("\ndata_global\n\nloop_\n" + loop + "\n" + "\n".join(rows) + "\n\n")
    assert read_tilt_series(path) == {run: grid.tilt_series for run, grid in GRIDS.items()}
