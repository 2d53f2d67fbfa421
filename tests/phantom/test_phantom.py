"""The phantom's truth, measured by means other than those that made it."""

from __future__ import annotations

import gzip
import itertools
import json
import math
from pathlib import Path

import copick
import mrcfile
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import ndimage
from scipy.interpolate import RegularGridInterpolator

from tomoscout.data.project import Project
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import digest_folder, read_json
from tomoscout.options.names import Source
from tomoscout.phantom.maps import kind_from_map, otsu_threshold
from tomoscout.phantom.options import Phantom
from tomoscout.phantom.physics import contrast_transfer, image, measured
from tomoscout.phantom.placement import orientations, scatter, vesicles
from tomoscout.phantom.project import make_kinds, make_phantom, simulate
from tomoscout.phantom.shapes import Kind, render

SPACING = 10.0
SMALL = Phantom(runs=2, shape=[40, 64, 72], particles=2, seed=5)
KINDS = make_kinds(SMALL)
NAMES = ["ribosome", "virus-like-particle", "proteasome", "apo-ferritin", "hemoglobin"]

# The electron wavelength at 300 kV in Å, as textbooks tabulate it.
WAVELENGTH = 0.019687


def changed(**options: object) -> Phantom:
    return SMALL.model_copy(update=options)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom(tmp_path_factory.mktemp("phantom"), changed(membranes=1))


def voxel_positions(shape: tuple[int, ...], spacing: float = SPACING) -> np.ndarray:
    """x, y, z in Å of every voxel (z, y, x, 3)."""
    z, y, x = np.meshgrid(*(np.arange(n) * spacing for n in shape), indexing="ij")
    return np.stack([x, y, z], axis=-1)


# What is in a run


def test_equal_options_give_equal_bytes(tmp_path: Path) -> None:
    options = changed(membranes=1)
    make_phantom(tmp_path, options)
    first = digest_folder(tmp_path)
    make_phantom(tmp_path, options)
    assert digest_folder(tmp_path) == first


def test_runs_do_not_depend_on_their_number(tmp_path: Path) -> None:
    one, three = tmp_path / "one", tmp_path / "three"
    make_phantom(one, changed(runs=1))
    make_phantom(three, changed(runs=3))
    assert digest_folder(one / "ExperimentRuns" / "phantom-000") == digest_folder(
        three / "ExperimentRuns" / "phantom-000"
    )
    make_phantom(one, changed(runs=3))
    assert digest_folder(one / "ExperimentRuns") == digest_folder(three / "ExperimentRuns")
    tomograms = {run["tomogram"] for run in read_json(three / "phantom.json")["runs"].values()}
    assert len(tomograms) == 3


def test_another_seed_is_another_phantom() -> None:
    first, second = (simulate(KINDS, changed(seed=seed), 0) for seed in (1, 2))
    assert not np.array_equal(first.tomogram, second.tomogram)
    assert not np.array_equal(first.picks["ribosome"].positions, second.picks["ribosome"].positions)
    assert first.defocus != second.defocus


def test_numbers_of_particles_by_object() -> None:
    options = changed(numbers={"hemoglobin": 7, "ribosome": 0}, absent={"proteasome": 2})
    counts = [{name: len(picks) for name, picks in simulate(KINDS, options, index).picks.items()} for index in (0, 1)]
    assert counts[0] == {**dict.fromkeys(NAMES, 2), "hemoglobin": 7, "ribosome": 0}
    assert counts[1] == {**counts[0], "proteasome": 0}


def test_some_shapes_alone() -> None:
    options = changed(shapes=["proteasome", "hemoglobin"])
    kinds = make_kinds(options)
    assert [kind.name for kind in kinds] == ["proteasome", "hemoglobin"]
    assert list(simulate(kinds, options, 0).picks) == ["proteasome", "hemoglobin"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shapes": ["ribosom"]}, "shapes: no built-in shape 'ribosom'"),
        ({"shapes": []}, "neither shapes nor maps"),
        ({"numbers": {"ribosom": 3}}, "numbers: no object 'ribosom'"),
        ({"absent": {"membrane": 3}}, "absent: no object 'membrane'"),
        ({"signal_to_noise": [0.1]}, "at least 2 items"),
        ({"signal_to_noise": [0.1, 0]}, "greater than or equal to"),
    ],
)
def test_options_that_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Phantom(**options)


def test_each_run_has_a_noise_of_its_own() -> None:
    def noise(index: int, ratio: object) -> float:
        """Variance of the noise over that of the signal inside particles: outside of them there is noise alone."""
        made = simulate(KINDS, changed(signal_to_noise=ratio), index)
        empty = ndimage.distance_transform_edt(made.density <= 0.5) > 3
        return float(made.tomogram[empty].var())

    assert simulate(KINDS, changed(signal_to_noise=[2.0, 2.0]), 0).tomogram == pytest.approx(
        simulate(KINDS, changed(signal_to_noise=2.0), 0).tomogram
    )
    found = [noise(index, [0.01, 100.0]) for index in range(4)]
    assert len({round(value, 3) for value in found}) == 4
    assert all(noise(index, 100.0) - 0.05 < value < noise(index, 0.01) + 0.05 for index, value in enumerate(found))


def test_noise_does_not_change_what_is_in_a_run() -> None:
    quiet, loud = (simulate(KINDS, changed(signal_to_noise=snr), 0) for snr in (10.0, 0.1))
    assert np.array_equal(quiet.density, loud.density)
    assert all(np.array_equal(quiet.picks[n].transforms, loud.picks[n].transforms) for n in NAMES)


def test_five_kinds_of_different_size() -> None:
    radii = {kind.name: kind.radius for kind in KINDS}
    assert list(radii) == NAMES
    assert radii["ribosome"] == pytest.approx(150, abs=5)
    assert radii["virus-like-particle"] == pytest.approx(135, abs=3)
    assert radii["apo-ferritin"] == pytest.approx(60, abs=3)
    assert 2 * radii["hemoglobin"] == pytest.approx(60, abs=6)


def test_proteasome_is_elongated_and_the_shells_are_hollow() -> None:
    densities = {kind.name: kind.density for kind in KINDS}
    points = np.argwhere(densities["proteasome"] > 0.5)
    lengths = np.sqrt(np.linalg.eigvalsh(np.cov(points.T)))
    assert lengths[-1] > 1.5 * lengths[0]
    for name in ("virus-like-particle", "apo-ferritin"):
        middle = densities[name].shape[0] // 2
        assert densities[name][middle, middle, middle] == 0
        _, pieces = ndimage.label(densities[name] < 0.5)
        assert pieces == 2


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_nothing_of_a_kind_is_cut_off(kind: Kind) -> None:
    faces = kind.density.copy()
    faces[1:-1, 1:-1, 1:-1] = 0
    assert faces.max() == 0
    assert kind.density.max() >= 0.99


# Placement


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    st.lists(st.floats(5, 60), min_size=1, max_size=25),
    st.tuples(*[st.floats(50, 400)] * 3),
    st.integers(0, 2**32),
)
def test_spheres_never_overlap_and_stay_inside(radii: list[float], extent: tuple[float, ...], seed: int) -> None:
    centres = scatter(np.array(radii), np.array(extent), np.random.default_rng(seed), tries=200)
    placed = [(c, r) for c, r in zip(centres, radii, strict=True) if not np.isnan(c).any()]
    for centre, radius in placed:
        assert (centre >= radius - 1e-9).all() and (centre <= np.array(extent) - radius + 1e-9).all()
    for (a, r), (b, s) in itertools.combinations(placed, 2):
        assert math.dist(a, b) >= r + s - 1e-9
    if min(extent) >= 2 * max(radii):
        assert not np.isnan(centres[int(np.argmax(radii))]).any(), "the largest comes first and has room"


def test_no_voxel_belongs_to_two_particles() -> None:
    result = simulate(KINDS, changed(particles=6, shape=[48, 96, 96]), 1)
    count = np.zeros(result.density.shape, dtype=int)
    for kind in KINDS:
        picks = result.picks[kind.name]
        for i in range(len(picks)):
            alone = np.zeros(count.shape, dtype=np.float32)
            render(kind, picks.positions[i : i + 1], picks.transforms[i : i + 1, :3, :3], alone, SPACING)
            count += alone > 0.5
    assert count.max() == 1
    assert np.array_equal(count > 0, result.density > 0.5)


def test_the_default_fits_twelve_of_every_kind() -> None:
    result = simulate(KINDS, Phantom(), 0)
    assert {name: len(picks) for name, picks in result.picks.items()} == dict.fromkeys(NAMES, 12)


def test_a_crowd_is_placed_as_far_as_it_fits_and_the_rest_is_reported(tmp_path: Path) -> None:
    lines: list[str] = []
    make_phantom(tmp_path, changed(runs=1, particles=30, membranes=9), lines.append)
    run = read_json(tmp_path / "phantom.json")["runs"]["phantom-000"]
    counts = run["particles"]
    assert counts["ribosome"] < 30 and counts["hemoglobin"] == 30
    assert len(lines) == 1 and f"{counts['ribosome']} ribosome" in lines[0]
    lack = lines[0].partition("no room for ")[2].split(", ")
    assert "30 ribosome" in lack and "9 vesicles" in lack and "30 hemoglobin" not in lack
    assert 1 <= run["vesicles"] < 9 and f"{run['vesicles']} vesicles" in lines[0]


def test_orientations_are_uniform() -> None:
    turns = orientations(20_000, np.random.default_rng(0))
    assert np.allclose(turns @ turns.transpose(0, 2, 1), np.eye(3), atol=1e-9)
    assert np.allclose(np.linalg.det(turns), 1)
    # Uniform over rotations: entries of mean 0 and mean square 1/3, traces of mean square 1.
    assert np.allclose(turns.mean(axis=0), 0, atol=0.02)
    assert np.allclose((turns**2).mean(axis=0), 1 / 3, atol=0.02)
    traces = turns.trace(axis1=1, axis2=2)
    assert traces.mean() == pytest.approx(0, abs=0.03)
    assert (traces**2).mean() == pytest.approx(1, abs=0.04)


# Position and orientation


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_the_pick_is_the_centre_of_mass(kind: Kind) -> None:
    position = np.array([203.7, 188.1, 196.4])
    volume = np.zeros((40, 40, 40), dtype=np.float32)
    render(kind, position[None], orientations(1, np.random.default_rng(3)), volume, SPACING)
    mass = volume[..., None].astype(float)
    centre = (mass * voxel_positions(volume.shape)).sum(axis=(0, 1, 2)) / mass.sum()
    assert np.allclose(centre, position, atol=0.2)


def lopsided(points: np.ndarray, weights: list[float], width: float = 15.0) -> Kind:
    """Gaussian spots at known points (x, y, z in Å)."""
    half, step = 24, SPACING / 2
    places = voxel_positions((2 * half + 1,) * 3, step) - half * step
    density = sum(
        w * np.exp(-((places - p) ** 2).sum(-1) / (2 * width**2)) for p, w in zip(points, weights, strict=True)
    )
    return Kind("lopsided", np.asarray(density, dtype=np.float32), step, 80.0)


@pytest.mark.parametrize("seed", range(4))
def test_a_rotation_turns_the_object_into_the_tomogram(seed: int) -> None:
    points = np.array([[60.0, 0, 0], [0, 45.0, 0], [0, 0, 30.0], [-20.0, -30.0, -40.0]])
    weights = [1.0, 0.8, 0.6, 1.2]
    rotation = orientations(1, np.random.default_rng(seed))[0]
    position = np.array([152.3, 147.9, 151.2])
    volume = np.zeros((31, 31, 31), dtype=np.float32)
    render(lopsided(points, weights), position[None], rotation[None], volume, SPACING)

    places = voxel_positions(volume.shape)
    expected = np.zeros(volume.shape)
    for point, weight in zip(points, weights, strict=True):
        turned = [sum(rotation[i, j] * point[j] for j in range(3)) for i in range(3)]
        expected += weight * np.exp(-((places - position - turned) ** 2).sum(-1) / (2 * 15.0**2))
    assert np.abs(volume - expected).max() < 0.05


def test_stored_picks_rebuild_the_density(phantom: Path) -> None:
    result = simulate(KINDS, changed(membranes=1), 1)
    particles = result.density - result.membranes.density
    rebuilt = np.zeros(particles.shape)
    places = voxel_positions(particles.shape)
    run = copick.from_file(str(phantom)).get_run("phantom-001")
    for kind in KINDS:
        half = kind.density.shape[0] // 2
        axis = np.arange(-half, half + 1) * kind.step
        lookup = RegularGridInterpolator((axis,) * 3, kind.density, bounds_error=False, fill_value=0)
        for point in run.get_picks(object_name=kind.name)[0].points:
            location = np.array([point.location.x, point.location.y, point.location.z])
            transform = np.array(point.transformation)
            assert np.array_equal(transform[:, 3], [0, 0, 0, 1])
            own = np.einsum("ji,...j->...i", transform[:3, :3], places - location)
            rebuilt += lookup(own[..., ::-1])
    assert np.abs(rebuilt - particles).max() < 1e-3
    assert rebuilt.max() > 1


# Physics


def full_frequencies(shape: tuple[int, ...], spacing: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.meshgrid(*(np.fft.fftfreq(n, spacing) for n in shape), indexing="ij")


def test_the_missing_wedge_is_empty(phantom: Path) -> None:
    store = zarr.open(
        copick.from_file(str(phantom)).get_run("phantom-000").get_voxel_spacing(10.0).get_tomograms("wbp")[0].zarr()
    )
    volume = np.asarray(store["0"], dtype=np.float64)
    power = np.abs(np.fft.fftn(volume)) ** 2
    kz, _, kx = full_frequencies(volume.shape, SPACING)
    missing = np.abs(kz) > np.abs(kx) * math.tan(math.radians(60)) * (1 + 1e-6)
    kept = ~missing
    kept[0, 0, 0] = False
    assert 0.2 < missing.mean() < 0.5
    assert power[missing].max() < 1e-8 * np.median(power[kept])


def test_a_full_tilt_range_misses_nothing() -> None:
    kz, _, kx = full_frequencies((6, 5, 8), SPACING)
    assert measured(kz, kx, 90.0).all()
    half = measured(kz, kx, 45.0)
    assert np.array_equal(half, np.abs(kz) <= np.abs(kx))


def reference_signal(density: np.ndarray, spacing: float, defocus: float, tilt: float) -> np.ndarray:
    """Contrast transfer and wedge in double precision with complex transforms."""
    kz, ky, kx = full_frequencies(density.shape, spacing)
    k2 = kz**2 + ky**2 + kx**2
    chi = math.pi * WAVELENGTH * defocus * 1e4 * k2 - math.pi / 2 * 2.7e7 * WAVELENGTH**3 * k2**2
    transfer = -np.abs(math.sqrt(1 - 0.07**2) * np.sin(chi) + 0.07 * np.cos(chi))
    transfer[np.abs(kz) > np.abs(kx) * math.tan(math.radians(tilt))] = 0
    return np.fft.ifftn(np.fft.fftn(density) * transfer).real


@pytest.mark.parametrize("signal_to_noise", [0.1, 0.5, 3.0])
def test_signal_to_noise_is_as_stated(signal_to_noise: float) -> None:
    options = changed(signal_to_noise=signal_to_noise, shape=[48, 96, 96], tilt_range=50.0)
    result = simulate(KINDS, options, 0)
    inside = result.density > 0.5
    signal = reference_signal(result.density, SPACING, result.defocus, 50.0)
    # The tomogram is scale × (signal + noise) with noise independent of the signal: the regression finds the scale.
    centred = signal - signal.mean()
    scale = (result.tomogram * centred).sum() / (centred**2).sum()
    noise = result.tomogram / scale - signal
    assert signal[inside].var() / noise.var() == pytest.approx(signal_to_noise, rel=0.06)
    assert abs(np.corrcoef(noise[inside], signal[inside])[0, 1]) < 0.1


def test_a_quiet_tomogram_is_the_signal() -> None:
    result = simulate(KINDS, changed(signal_to_noise=1e9), 0)
    signal = reference_signal(result.density, SPACING, result.defocus, 60.0)
    assert np.corrcoef(result.tomogram.ravel(), signal.ravel())[0, 1] > 0.99999
    solvent = ndimage.distance_transform_edt(result.density < 0.01) > 4
    assert result.tomogram[result.density > 0.5].mean() < result.tomogram[solvent].mean() - 0.5, "protein is dark"


@pytest.mark.parametrize("defocus", [2.0, 4.0])
def test_contrast_vanishes_where_theory_says(defocus: float) -> None:
    # sin(χ + asin 0.07) = 0 first at χ = π − asin 0.07; the spherical aberration hardly moves it.
    first_zero = math.sqrt((1 - math.asin(0.07) / math.pi) / (WAVELENGTH * defocus * 1e4))
    k = np.linspace(0, 1.35 * first_zero, 20_001)
    transfer = contrast_transfer(k, defocus)
    assert transfer[0] == pytest.approx(-0.07)
    assert transfer.max() <= 0 and transfer.min() == pytest.approx(-1, abs=1e-6)
    near = k > 0.5 * first_zero
    assert k[near][np.argmax(transfer[near])] == pytest.approx(first_zero, rel=0.002)

    point = np.zeros((96, 96, 96), dtype=np.float32)
    point[48, 48, 48] = 1
    volume = image(
        point, point < 0, voxel_spacing=6.0, defocus=defocus, tilt_range=90.0, signal_to_noise=1e12,
        random=np.random.default_rng(0),
    )  # fmt: skip
    kz, ky, kx = full_frequencies(point.shape, 6.0)
    radius = np.sqrt(kz**2 + ky**2 + kx**2)
    amplitude = np.abs(np.fft.fftn(volume))
    on_zero = np.abs(radius / first_zero - 1) < 0.004
    on_peak = np.abs(radius / first_zero - math.sqrt(0.5)) < 0.004
    assert on_zero.any() and on_peak.any()
    assert amplitude[on_zero].mean() < 0.03 * amplitude[on_peak].mean()


def test_tomograms_are_normalised() -> None:
    volume = simulate(KINDS, SMALL, 0).tomogram
    assert volume.dtype == np.float32
    assert volume.mean(dtype=np.float64) == pytest.approx(0, abs=1e-5)
    assert volume.std(dtype=np.float64) == pytest.approx(1, abs=1e-5)


def test_each_run_has_its_own_defocus(tmp_path: Path) -> None:
    make_phantom(tmp_path, changed(runs=3, shape=[4, 8, 8], defocus=[1.0, 1.5]))
    found = [run["defocus"] for run in read_json(tmp_path / "phantom.json")["runs"].values()]
    assert len(set(found)) == 3 and all(1.0 <= value <= 1.5 for value in found)


# Membranes


def test_membranes_are_closed_shells_of_the_stated_thickness() -> None:
    membranes = vesicles(3, (64, 128, 128), SPACING, np.random.default_rng(1))
    _, shells = ndimage.label(membranes.mask)
    _, rooms = ndimage.label(~membranes.mask)
    assert shells == membranes.count == 3 and rooms == shells + 1
    inner = ndimage.distance_transform_edt(membranes.mask) * SPACING
    # From the middle of the bilayer to its border, give or take a voxel.
    assert inner.max() == pytest.approx(30, abs=SPACING)
    assert membranes.density[~membranes.mask].max() < 0.4 < 0.9 < membranes.density.max() < 1.3


def test_vesicles_are_what_membranes_enclose() -> None:
    membranes = vesicles(3, (64, 128, 128), SPACING, np.random.default_rng(1))
    assert np.array_equal(np.unique(membranes.vesicles), [0, 1, 2, 3])
    assert np.array_equal(membranes.vesicles > 0, ndimage.binary_fill_holes(membranes.mask))
    assert ndimage.label(membranes.vesicles > 0)[1] == 3


def test_particles_stay_off_the_membrane() -> None:
    options = changed(membranes=2, particles=4, shape=[56, 112, 112])
    result = simulate(KINDS, options, 0)
    voxels = np.argwhere(result.membranes.mask)[:, ::-1] * SPACING
    assert len(voxels) > 1000
    for kind in KINDS:
        for position in result.picks[kind.name].positions:
            assert np.linalg.norm(voxels - position, axis=1).min() >= kind.radius
    assert sum(map(len, result.picks.values())) >= 15


def test_the_membrane_is_a_binary_segmentation(phantom: Path) -> None:
    root = copick.from_file(str(phantom))
    (segmentation,) = root.get_run("phantom-001").get_segmentations(name="membrane", user_id="phantom", session_id="0")
    labels = segmentation.numpy()
    assert not segmentation.is_multilabel and labels.dtype == np.uint8
    assert np.array_equal(labels, simulate(KINDS, changed(membranes=1), 1).membranes.mask)
    assert 0 < labels.mean() < 0.5
    assert not root.get_object("membrane").is_particle and root.get_object("membrane").label == 6


# Density maps


def write_map(path: Path, data: np.ndarray, voxel_size: float = 5.0, axes: tuple[int, int, int] = (1, 2, 3)) -> Path:
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(data)
        file.voxel_size = voxel_size
        file.header.mapc, file.header.mapr, file.header.maps = axes
    return path


def l_shape(scale: float = 1.0) -> np.ndarray:
    """A bar of 80 Å along x and a shorter one along z at its end, and a speck, at 5 Å per voxel."""
    data = np.full((30, 26, 34), 0.02 * scale, dtype=np.float32)
    data[8:12, 10:14, 8:24] = scale
    data[12:18, 10:14, 8:12] = scale
    data[27, 23, 31] = scale
    return data


def test_a_map_replaces_a_built_in_shape_or_adds_an_object(tmp_path: Path) -> None:
    path = str(write_map(tmp_path / "map.mrc", l_shape(7.5)))
    config = make_phantom(tmp_path / "project", changed(runs=1, maps={"proteasome": path, "new-one": path}))
    objects = copick.from_file(str(config)).pickable_objects
    assert [entry.name for entry in objects] == [*NAMES, "new-one"]
    assert [entry.label for entry in objects] == [1, 2, 3, 4, 5, 6]
    assert objects[2].radius == objects[5].radius == pytest.approx(51, abs=5)
    picks = Project("p", config).read_picks("phantom-000", Source("new-one", "phantom", "0"))
    assert len(picks) == 2


def test_a_map_is_centred_scaled_and_cleared_of_specks(tmp_path: Path) -> None:
    kind = kind_from_map("l", write_map(tmp_path / "l.mrc", l_shape(40)), SPACING)
    points = np.argwhere(l_shape()[:25] > 0.5) * 5.0
    expected = np.linalg.norm(points - points.mean(axis=0), axis=1).max()
    assert kind.radius == pytest.approx(expected, abs=SPACING / 2)
    middle = kind.density.shape[0] // 2
    centre = np.array(ndimage.center_of_mass(kind.density)) - middle
    assert np.allclose(centre * kind.step, 0, atol=0.5)
    assert kind.density[kind.density > 0.5].mean() == pytest.approx(1, abs=0.2)
    assert ndimage.label(kind.density > 0.1)[1] == 1
    # The volume in Å³ is that of the map, whatever the sampling.
    assert kind.density.sum() * kind.step**3 == pytest.approx(len(points) * 5.0**3, rel=0.25)
    # Longest along x, shortest along y, as in the file.
    spread = np.argwhere(kind.density > 0.5).std(axis=0)
    assert spread[2] > spread[0] > spread[1]


def test_a_map_keeps_its_size_at_another_spacing_and_its_axes(tmp_path: Path) -> None:
    kind = kind_from_map("l", write_map(tmp_path / "l.mrc", l_shape()), SPACING)
    fine = kind_from_map("l", write_map(tmp_path / "l.mrc", l_shape()), 7.0)
    assert fine.radius == pytest.approx(kind.radius, abs=5)
    # Columns of the file along z, sections along x: the header says so.
    turned = np.ascontiguousarray(l_shape().transpose(2, 1, 0))
    other = kind_from_map("l", write_map(tmp_path / "turned.mrc", turned, axes=(3, 2, 1)), SPACING)
    assert np.allclose(other.density, kind.density, atol=1e-5)
    with gzip.open(tmp_path / "l.mrc.gz", "wb") as file:
        file.write((tmp_path / "l.mrc").read_bytes())
    assert np.array_equal(kind_from_map("l", tmp_path / "l.mrc.gz", 7.0).density, fine.density)


@settings(deadline=None, max_examples=20, derandomize=True)
@given(st.integers(0, 2**32), st.floats(0.05, 0.5), st.floats(2, 20))
def test_otsu_threshold_separates_best(seed: int, share: float, distance: float) -> None:
    random = np.random.default_rng(seed)
    values = random.standard_normal(400)
    values[: int(400 * share)] += distance
    edges = np.histogram_bin_edges(values, 256)

    def between(threshold: float) -> float:
        low, high = values[values < threshold], values[values >= threshold]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    assert between(otsu_threshold(values)) >= 0.99 * max(map(between, edges[1:-1]))


def broken_maps() -> dict[str, bytes | np.ndarray | None]:
    inverted = 1 - l_shape()
    with_nan = l_shape()
    with_nan[3, 3, 3] = np.nan
    return {
        "no such density map": None,
        "not a readable MRC file": b"HEADER    PROTEIN" * 100,
        "expected a volume": np.ones((8, 8), dtype=np.float32),
        "constant": np.ones((8, 8, 8), dtype=np.float32),
        "NaN": with_nan,
        "brighter than solvent": inverted,
        "complex64": np.ones((8, 8, 8), dtype=np.complex64),
    }


@pytest.mark.filterwarnings("ignore:Data array contains NaN")
@pytest.mark.parametrize("message", broken_maps())
def test_a_bad_map_is_named(tmp_path: Path, message: str) -> None:
    content, path = broken_maps()[message], tmp_path / "bad.mrc"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        write_map(path, content)
    with pytest.raises(TomoscoutError, match=message) as error:
        make_phantom(tmp_path / "project", changed(maps={"ribosome": str(path)}))
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "project").exists()


def test_a_truncated_map_or_one_without_voxel_size_is_named(tmp_path: Path) -> None:
    path = write_map(tmp_path / "short.mrc", l_shape())
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(TomoscoutError, match=r"short\.mrc: not a readable MRC file"):
        kind_from_map("x", path, SPACING)
    packed = gzip.compress((write_map(tmp_path / "l.mrc", l_shape())).read_bytes())
    (tmp_path / "short.mrc.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(TomoscoutError, match=r"short\.mrc\.gz: not a readable MRC file"):
        kind_from_map("x", tmp_path / "short.mrc.gz", SPACING)
    with pytest.raises(TomoscoutError, match=r"none\.mrc: voxel size \[0\.0, 0\.0, 0\.0\]"):
        kind_from_map("x", write_map(tmp_path / "none.mrc", l_shape(), voxel_size=0.0), SPACING)


@pytest.mark.parametrize("name", ["beta_amylase", "two words", "membrane", ""])
def test_an_object_name_copick_would_change_is_refused(name: str) -> None:
    with pytest.raises(TomoscoutError, match=f"object name '{name}'"):
        make_kinds(changed(maps={name: "any.mrc"}))


# The project


def test_copick_reads_everything(phantom: Path) -> None:
    root = copick.from_file(str(phantom))
    assert sorted(run.name for run in root.runs) == ["phantom-000", "phantom-001"]
    assert [entry.name for entry in root.pickable_objects] == [*NAMES, "membrane"]
    assert len({tuple(entry.color) for entry in root.pickable_objects}) == 6
    assert [entry.radius for entry in root.pickable_objects[:5]] == [round(kind.radius, 1) for kind in KINDS]
    for index, run in enumerate(sorted(root.runs, key=lambda run: run.name)):
        truth = simulate(KINDS, changed(membranes=1), index)
        (tomogram,) = run.get_voxel_spacing(10.0).get_tomograms("wbp")
        assert np.array_equal(tomogram.numpy(), truth.tomogram)
        for name in NAMES:
            (picks,) = run.get_picks(object_name=name, user_id="phantom", session_id="0")
            positions, transforms = picks.numpy()
            assert np.array_equal(positions, truth.picks[name].positions)
            assert np.array_equal(transforms, truth.picks[name].transforms)


def test_tomoscout_reads_it_too(phantom: Path) -> None:
    project = Project("phantom", phantom)
    assert {uri: found.shape for uri, found in project.tomograms("phantom-000").items()} == {"wbp@10.0": (40, 64, 72)}
    assert project.read_tomogram("phantom-000", "wbp@10.0").std() == pytest.approx(1, abs=1e-3)
    assert sorted(map(str, project.segmentations("phantom-000"))) == [
        "membrane:phantom/0@10.0",
        "vesicles:phantom/0@10.0?multilabel=true",
    ]


def test_a_phantom_without_particles_has_empty_picks(tmp_path: Path) -> None:
    config = make_phantom(tmp_path, changed(runs=1, particles=0))
    project = Project("phantom", config)
    sources = project.pick_sources("phantom-000")
    assert [source.name for source in sources] == sorted(NAMES)
    assert all(len(project.read_picks("phantom-000", source)) == 0 for source in sources)
    assert "membrane" not in project.objects
    assert project.read_tomogram("phantom-000", "wbp@10.0").std() == pytest.approx(1, abs=1e-3)


def test_other_options_or_fewer_runs_are_refused(tmp_path: Path) -> None:
    make_phantom(tmp_path, SMALL)
    before = digest_folder(tmp_path)
    with pytest.raises(TomoscoutError, match=r"phantom\.json: made with seed 5; expected 6"):
        make_phantom(tmp_path, changed(seed=6))
    with pytest.raises(TomoscoutError, match="has 2 runs; expected at most 1"):
        make_phantom(tmp_path, changed(runs=1))
    assert digest_folder(tmp_path) == before


def test_another_project_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "copick.json").write_text(json.dumps({"name": "precious"}))
    with pytest.raises(TomoscoutError, match="belongs to another project"):
        make_phantom(tmp_path, SMALL)
    assert read_json(tmp_path / "copick.json") == {"name": "precious"}


def test_an_interrupted_phantom_is_completed(tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    def stop(line: str) -> None:
        raise Interrupted(line)

    with pytest.raises(Interrupted):
        make_phantom(tmp_path / "a", SMALL, stop)
    assert not (tmp_path / "a" / "phantom.json").exists()
    make_phantom(tmp_path / "a", SMALL)
    make_phantom(tmp_path / "b", SMALL)
    assert digest_folder(tmp_path / "a" / "ExperimentRuns") == digest_folder(tmp_path / "b" / "ExperimentRuns")
