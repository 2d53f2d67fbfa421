"""A copick project with known ground truth: simulated tomograms, their particles and membranes."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.copick_config import PickableObject, create_project
from tomoscout.data.picks import Picks
from tomoscout.data.project import Project
from tomoscout.data.written import Segmentation
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import digest, digest_file, read_json, write_json
from tomoscout.options.forms import read_entries
from tomoscout.options.names import NAME_PATTERN, Source, TomogramUri
from tomoscout.phantom.maps import kind_from_map
from tomoscout.phantom.options import Phantom
from tomoscout.phantom.physics import image
from tomoscout.phantom.placement import Membranes, extent_of, orientations, room_around, scatter, vesicles
from tomoscout.phantom.shapes import Kind, built_in, render
from tomoscout.plan.stages import STAGES

ALGORITHM = "wbp"
USER = "phantom"
SESSION = "0"
MEMBRANE = "membrane"
VESICLES = "vesicles"
PROJECT = "phantom"


@dataclass(frozen=True)
class Simulation:
    """One run: its tomogram and its ground truth.

    `tomogram` and `density` (protein about 1, solvent 0; membranes included) are (z, y, x); `picks` are by kind;
    `defocus` is in µm.
    """

    tomogram: NDArray[np.float32]
    density: NDArray[np.float32]
    picks: dict[str, Picks]
    membranes: Membranes
    defocus: float


def make_phantom(folder: Path, options: Phantom, progress: Callable[[str], None] | None = None) -> Path:
    """Write a phantom project into `folder` and return its copick config, `copick.json`.

    Runs `phantom-000`, `phantom-001`, … each get a tomogram, picks of every kind (user `phantom`, session `0`) with the
    orientation in their transforms, and with `options.membranes` two segmentations: membrane, and vesicles, in which
    each vesicle has a number of its own. `phantom.json`, written last, holds the options, the number of particles of
    each kind that were placed, and the digest of each tomogram; `progress` is called with a line per run. A run depends
    on the options and its own number, not on how many runs there are, so runs can be added later. Equal options give
    equal bytes.

    Raises:
        TomoscoutError: a density map is missing or broken, an object has a name copick would change, or the folder
            holds another project or a phantom of other options.
    """
    kinds = make_kinds(options)
    made_with = {
        "version": STAGES["phantom"].version,
        **options.decisive(),
        "maps": {name: digest_file(Path(path)) for name, path in options.maps.items()},
    }
    _refuse_other_content(folder, made_with, options.runs)
    path = create_project(folder, _objects(kinds, options), PROJECT)
    project = Project(PROJECT, path)
    runs = {}
    for index in range(options.runs):
        name = f"phantom-{index:03d}"
        runs[name] = summary = _write_run(project, name, simulate(kinds, options, index), options)
        if progress is not None:
            progress(_describe(index, name, summary, options))
    objects = {kind.name: {"label": label, "radius": round(kind.radius, 1)} for label, kind in enumerate(kinds, 1)}
    write_json(folder / "phantom.json", {"made_with": made_with, "objects": objects, "runs": runs})
    return path


def make_kinds(options: Phantom) -> list[Kind]:
    """The kinds of particles: `shapes`, those with a density map replaced, and the maps of other names."""
    kinds = {kind.name: kind for kind in built_in(options.voxel_spacing) if kind.name in options.shapes}
    for name, path in options.maps.items():
        if not re.match(NAME_PATTERN, name) or name == MEMBRANE:
            raise TomoscoutError(
                f"phantom.maps: object name '{name}'; expected one without spaces, '_' or ':', and not '{MEMBRANE}'"
            )
        kinds[name] = kind_from_map(name, Path(path), options.voxel_spacing)
    return list(kinds.values())


def simulate(kinds: list[Kind], options: Phantom, index: int) -> Simulation:
    """Simulate run number `index`. It depends on the options and its number alone, not on how many runs there are."""
    shape = (options.shape[0], options.shape[1], options.shape[2])
    spacing = options.voxel_spacing
    # A random stream for each purpose, so that more draws for one do not change the others.
    place, shed, shoot, focus, noise = (np.random.default_rng([options.seed, index, purpose]) for purpose in range(5))

    membranes = vesicles(options.membranes, shape, spacing, shed)
    room = room_around(membranes.mask, spacing) if membranes.mask.any() else None
    # Half a voxel more than the radius: the soft edge of a density.
    counts = [options.number(kind.name, index) for kind in kinds]
    radii = np.repeat([kind.radius + spacing / 2 for kind in kinds], counts)
    ends = np.cumsum(counts)[:-1]
    centres = np.split(scatter(radii, extent_of(shape, spacing), place, room), ends)
    rotations = np.split(orientations(len(radii), place), ends)

    density = np.zeros(shape, dtype=np.float32)
    picks = {}
    for kind, candidates, turns in zip(kinds, centres, rotations, strict=True):
        found = ~np.isnan(candidates[:, 0])
        picks[kind.name] = Picks.at(candidates[found])
        picks[kind.name].transforms[:, :3, :3] = turns[found]
        render(kind, candidates[found], turns[found], density, spacing)
    defocus = float(focus.uniform(min(options.defocus), max(options.defocus)))
    ratio = options.signal_to_noise
    if isinstance(ratio, list):
        ratio = float(np.exp(noise.uniform(*np.log(sorted(ratio)))))
    tomogram = image(
        density + membranes.density,
        density > 0.5,
        voxel_spacing=spacing,
        defocus=defocus,
        tilt_range=options.tilt_range,
        signal_to_noise=ratio,
        random=shoot,
    )
    return Simulation(tomogram, density + membranes.density, picks, membranes, defocus)


def _write_run(project: Project, run: str, result: Simulation, options: Phantom) -> dict[str, Any]:
    """Write a run; returns its entry in the manifest."""
    uri = str(TomogramUri(ALGORITHM, options.voxel_spacing))
    project.write_tomogram(run, uri, result.tomogram)
    for name, picks in result.picks.items():
        project.write_picks(run, Source(name, USER, SESSION), picks)
    if options.membranes:
        wanted = Segmentation(MEMBRANE, USER, SESSION, options.voxel_spacing, is_multilabel=False)
        project.write_segmentation(run, wanted, result.membranes.mask.astype(np.uint8), {})
        instances = Segmentation(VESICLES, USER, SESSION, options.voxel_spacing, is_multilabel=True)
        project.write_segmentation(run, instances, result.membranes.vesicles, {})
    return {
        "defocus": result.defocus,
        "vesicles": result.membranes.count,
        "particles": {name: len(picks) for name, picks in result.picks.items()},
        "tomogram": digest(result.tomogram.tobytes()),
    }


def _describe(index: int, run: str, summary: dict[str, Any], options: Phantom) -> str:
    asked = {name: options.number(name, index) for name in summary["particles"]}
    found = dict(summary["particles"])
    if options.membranes:
        asked["vesicles"], found["vesicles"] = options.membranes, summary["vesicles"]
    counts = ", ".join(f"{count} {name}" for name, count in found.items())
    short = ", ".join(f"{asked[name]} {name}" for name, count in found.items() if count < asked[name])
    return f"{run}: {counts}; defocus {summary['defocus']:.2f} µm" + (f"; no room for {short}" if short else "")


def _objects(kinds: list[Kind], options: Phantom) -> list[PickableObject]:
    """The objects of the copick config: labels from 1, hues evenly spaced."""
    names = [(kind.name, round(kind.radius, 1)) for kind in kinds] + [(MEMBRANE, None)] * bool(options.membranes)
    objects = []
    for index, (name, radius) in enumerate(names):
        red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(index / len(names), 0.8, 0.95))
        objects.append(PickableObject(name, radius is not None, index + 1, radius, (red, green, blue, 255)))
    return objects


def _refuse_other_content(folder: Path, made_with: dict[str, Any], runs: int) -> None:
    """Refuse a folder that holds another project, or a phantom of other options."""
    if (path := folder / "copick.json").exists() and read_json(path).get("name") != PROJECT:
        raise TomoscoutError(f"{path}: belongs to another project; expected an empty folder or a phantom")
    if not (path := folder / "phantom.json").exists():
        return
    old = read_entries(path, "what a phantom was made with", made_with=dict, runs=dict)
    for key, value in made_with.items():
        if (was := old["made_with"].get(key)) != value:
            raise TomoscoutError(f"{path}: made with {key} {was}; expected {value} (remove the folder to make it anew)")
    if len(old["runs"]) > runs:
        raise TomoscoutError(f"{path}: has {len(old['runs'])} runs; expected at most {runs}")
