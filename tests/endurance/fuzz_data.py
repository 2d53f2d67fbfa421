"""Damaged data of a project: copick's configuration, picks, tomograms and segmentations of other programs and disks."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from endurance.damage import NONSENSE, damage_file, damage_folder, damage_json
from endurance.made_project import (
    OBJECTS,
    PICKS,
    SHAPE,
    MadeProject,
    membrane_mask,
    picks_file,
    tomogram_of,
    write_zarr,
)
from endurance.trials import Case

_OTHERS = {
    ("constant", "segmentation"),
    *((kind, "tomogram") for kind in ("negative", "booleans", "float16", "probabilities")),
}
"""Volumes that may be meant so."""

RUN = "b"
"""The run that is damaged."""

ABOUT_TOMOGRAM = ["wbp", "VoxelSpacing"]
ABOUT_MEMBRANE = ["membrane", "Segmentations"]


def data_case(project: MadeProject, chance: random.Random) -> Case:
    """One thing wrong in the project."""
    kinds = [_objects, _config, _picks, _picks_json, _tomogram, _membrane, _metadata, _file, _folder, _extra]
    return chance.choice(kinds)(project, chance)


# copick's configuration


def _objects(project: MadeProject, chance: random.Random) -> Case:
    values = project.copick_config()
    ribosome = values["pickable_objects"][0]
    kinds: dict[str, Callable[[], object]] = {
        "the ribosome twice": lambda: values["pickable_objects"].append({**ribosome, "radius": 90.0}),
        "radius NaN": lambda: ribosome.update(radius=math.nan),
        "radius infinite": lambda: ribosome.update(radius=math.inf),
        "radius 1e6": lambda: ribosome.update(radius=1e6),
        "radius negative": lambda: ribosome.update(radius=-40.0),
        "radius 0": lambda: ribosome.update(radius=0),
        "no radius": lambda: ribosome.pop("radius"),
        "radius is a list": lambda: ribosome.update(radius=[40]),
        "is_particle: 'no'": lambda: ribosome.update(is_particle="no"),
        "is_particle: null": lambda: ribosome.update(is_particle=None),
        "label 0": lambda: ribosome.update(label=0),
        "label -1": lambda: ribosome.update(label=-1),
        "label 1e6": lambda: ribosome.update(label=1_000_000),
        "label of another object": lambda: ribosome.update(label=OBJECTS[1]["label"]),
        "label is a text": lambda: ribosome.update(label="seven"),
        "no name": lambda: ribosome.pop("name"),
        "another name": lambda: ribosome.update(name="80S"),
        "a name of spaces": lambda: ribosome.update(name="  "),
    }
    kind = chance.choice(list(kinds))
    kinds[kind]()
    project.copick.write_text(json.dumps(values))
    # Copick itself takes no label from files of before 2023, and no viewer needs one.
    return Case(f"copick.json: {kind}", refused="label" not in kind, about=["copick.json", "ribosome"])


def _config(project: MadeProject, chance: random.Random) -> Case:
    if chance.random() < 0.4:
        return Case(f"copick.json: {damage_file(project.copick, chance)}", refused=True, about=["copick.json"])
    if chance.random() < 0.4:
        values = project.copick_config()
        root = chance.choice(
            ["local:///nowhere/at/all", "", "local://", "x://y", "http://127.0.0.1:9", "local:///dev/null"]
        )
        values[chance.choice(["overlay_root", "static_root"])] = root
        project.copick.write_text(json.dumps(values))
        return Case(f"copick.json: a root {root!r}", about=["copick.json", "root", root.rpartition("://")[2] or "root"])
    done = damage_json(project.copick, chance)
    unused = ("description", "version", "user_id", "color", "overlay_fs_args", "label", "name: ", "without name")
    harmless = "copick needs it, the targets do not" if any(word in done for word in unused) else ""
    return Case(f"copick.json: {done}", about=["copick.json", "ribosome", "ferritin", "membrane"], harmless=harmless)


# Picks


def _picks(project: MadeProject, chance: random.Random) -> Case:
    name = "ribosome"
    values = picks_file(RUN, name, PICKS[name])
    points = values["points"]
    harmless = ""

    def scale(factor: float, unit: str) -> None:
        values["unit"] = unit
        for point in points:
            point["location"] = {axis: value * factor for axis, value in point["location"].items()}

    kinds: dict[str, Callable[[], object]] = {
        "in voxels, said to be Å": lambda: scale(0.1, "angstrom"),
        "unit pixel": lambda: scale(0.1, "pixel"),
        "unit nanometer": lambda: scale(0.1, "nanometer"),
        "unit furlong": lambda: values.update(unit="furlong"),
        "no points": lambda: values.update(points=[]),
        "points null": lambda: values.update(points=None),
        "a point twice": lambda: points.append(points[0]),
        "a point outside": lambda: points[0]["location"].update(x=5000.0),
        "a point at a negative place": lambda: points[0]["location"].update(x=-50.0),
        "a point at 1e300": lambda: points[0]["location"].update(x=1e300),
        "numbers as texts": lambda: points[0]["location"].update(x="sixty"),
        "another object inside": lambda: values.update(pickable_object_name="ferritin"),
        "another run inside": lambda: values.update(run_name="c"),
        "a point 2,000 times": lambda: points.extend(points[:1] * 2000),
        "a transform that mirrors": lambda: points[0].update(transformation_=np.diag([-1, 1, 1, 1]).tolist()),
        "a transform of 3 by 3": lambda: points[0].update(transformation_=np.eye(3).tolist()),
        "a score of NaN": lambda: points[0].update(score=math.nan),
    }
    kind = chance.choice(list(kinds))
    kinds[kind]()
    if kind in ("no points", "points null"):
        harmless = "somebody looked and found none"
    project.picks(RUN, name).write_text(json.dumps(values))
    return Case(f"picks: {kind}", about=[name], harmless=harmless)


def _picks_json(project: MadeProject, chance: random.Random) -> Case:
    name = chance.choice(list(PICKS))
    # A small number may be a place.
    nonsense = [value for value in NONSENSE if value not in (-1, True)]
    done = damage_json(project.picks(RUN, name), chance, nonsense)
    harmless = ""
    if re.fullmatch(r"points: (\[\]|null)|without points\.\d+", done):
        harmless = "so many were found"
    return Case(f"picks: {done}", about=[name], harmless=harmless)


# Tomograms and segmentations


def _tomogram(project: MadeProject, chance: random.Random) -> Case:
    return _volume(project.tomogram(RUN), tomogram_of(RUN), "tomogram", ABOUT_TOMOGRAM, chance)


def _membrane(project: MadeProject, chance: random.Random) -> Case:
    return _volume(project.membrane(RUN), membrane_mask(), "segmentation", ABOUT_MEMBRANE, chance)


def _volume(folder: Path, volume: np.ndarray, what: str, about: list[str], chance: random.Random) -> Case:
    """Write a volume another way. Where the way has a right reading, that is the volume it would be otherwise."""
    noisy = volume.astype(np.float32)
    kinds: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
        "chunks separated by dots": (volume, {"separator": "."}),
        "big-endian": (volume.astype(volume.dtype.newbyteorder(">")), {}),
        "float64": (volume.astype(np.float64), {}),
        "float16": (volume.astype(np.float16), {}),
        "complex": (volume.astype(np.complex64), {}),
        "texts": (volume.astype("U4"), {}),
        "booleans": (volume > 0, {}),
        "shape of zero": (np.zeros((0, 0, 0), volume.dtype), {}),
        "one slice": (volume[:1], {}),
        "another shape": (volume[:, :-8], {}),
        "two axes": (volume[0], {"axes": "yx"}),
        "a channel axis": (volume[None], {"axes": "czyx"}),
        "two channels": (np.stack([volume, volume]), {"axes": "czyx"}),
        "axes x, y, z": (volume.transpose(2, 1, 0), {"axes": "xyz"}),
        "spacing of 13 Å inside": (volume, {"scale": 13.0}),
        "spacing in nanometers": (volume, {"scale": 1.0, "unit": "nanometer"}),
        "level s0": (volume, {"level": "s0"}),
        "NaN": (np.where(noisy > noisy.mean(), np.nan, noisy), {}),
        "infinite": (np.where(noisy > noisy.mean(), np.inf, noisy), {}),
        "constant": (np.full(SHAPE, 3, volume.dtype), {}),
        "probabilities": (noisy * 0.3, {}),
        "negative": (volume.astype(np.int16) - 1, {}),
    }
    kind = chance.choice(list(kinds))
    shutil.rmtree(folder)
    written, options = kinds[kind]
    write_zarr(folder, written, **options)
    harmless = ""
    if (kind, what) in _OTHERS:
        harmless = "nothing tells it from a right one"
    return Case(f"{what}: {kind}", about=about, harmless=harmless)


def _metadata(project: MadeProject, chance: random.Random) -> Case:
    folder, about = chance.choice([(project.tomogram(RUN), ABOUT_TOMOGRAM), (project.membrane(RUN), ABOUT_MEMBRANE)])
    name = chance.choice(["0/.zarray", "0/.zarray", ".zattrs", ".zgroup"])
    path = folder / name
    done = damage_json(path, chance) if chance.random() < 0.7 else damage_file(path, chance)
    return Case(f"{folder.name}/{name}: {done}", about=about)


# Files and folders


def _file(project: MadeProject, chance: random.Random) -> Case:
    files = [path for path in sorted(project.run(RUN).rglob("*")) if path.is_file() and "_ferritin" not in path.name]
    path = chance.choice(files)
    # Nothing tells a chunk without compression that holds other bytes from a right one.
    if path.name.isdigit():
        content = path.read_bytes()
        done = "cut off"
        path.write_bytes(content[: chance.randrange(len(content))])
    else:
        done = damage_file(path, chance)
    about = ["ribosome", *ABOUT_TOMOGRAM, *ABOUT_MEMBRANE]
    return Case(f"{path.relative_to(project.folder)}: {done}", about=about)


def _folder(project: MadeProject, chance: random.Random) -> Case:
    folders = [project.run(RUN), *(path for path in sorted(project.run(RUN).rglob("*")) if path.is_dir())]
    path = chance.choice(folders)
    done = damage_folder(path, chance)
    whole = path.name in (RUN, "Picks", "Segmentations", "VoxelSpacing10.000")
    harmless = "a run without them is no error" if whole and done == "empty" else ""
    about = [RUN, "ribosome", *ABOUT_TOMOGRAM, *ABOUT_MEMBRANE]
    return Case(f"{path.relative_to(project.folder)}: {done}", about=about, harmless=harmless)


def _extra(project: MadeProject, chance: random.Random) -> Case:
    run = project.run(RUN)
    kinds: dict[str, Callable[[], object]] = {
        "a stray file among the runs": lambda: (run.parent / "notes.txt").write_text("x"),
        "a stray file in the run": lambda: (run / "notes.txt").write_text("x"),
        "a stray file among the picks": lambda: (run / "Picks/notes.txt").write_text("x"),
        "picks with a name of two parts": lambda: (run / "Picks/expert_ribosome.json").write_text("{}"),
        "picks with a name of five parts": lambda: (run / "Picks/a_b_c_d_e.json").write_text("{}"),
        "half a picks file of somebody else": lambda: (run / "Picks/other_0_ribosome.json").write_text('{"points": ['),
        "picks of an unknown object": lambda: (run / "Picks/expert_0_kinesin.json").write_text('{"points": []}'),
        "picks with a name of bytes": lambda: Path(f"{run}/Picks/\udce9_0_ribosome.json").write_text("{}"),
        "a run with a name of spaces": lambda: (run.parent / "a b").mkdir(),
        "a run with a name of bytes": lambda: Path(f"{run.parent}/\udcff").mkdir(),
        "an empty spacing": lambda: (run / "VoxelSpacing20.000").mkdir(),
        "a spacing without number": lambda: (run / "VoxelSpacing").mkdir(),
        "a spacing of text": lambda: (run / "VoxelSpacingabc").mkdir(),
        "a spacing of zero": lambda: (run / "VoxelSpacing0.000").mkdir(),
        "a tomogram that is a file": lambda: (run / "VoxelSpacing10.000/ctf.zarr").write_text("x"),
        "an empty tomogram": lambda: (run / "VoxelSpacing10.000/ctf.zarr").mkdir(),
        "an empty segmentation": lambda: (run / "Segmentations/10.000_other_0_membrane.zarr").mkdir(),
        "a segmentation of two parts": lambda: (run / "Segmentations/10.000_membrane.zarr").mkdir(),
        "a segmentation of no spacing": lambda: (run / "Segmentations/x_other_0_membrane.zarr").mkdir(),
        "a loop": lambda: (run / "Picks/loop").symlink_to(".."),
        "a second level": lambda: _add_level(project.tomogram(RUN)),
        "a file in a zarr": lambda: (project.tomogram(RUN) / "0/.DS_Store").write_text("x"),
        "a file among chunks": lambda: (project.tomogram(RUN) / "0/0/0/.nfs0001").write_text("x"),
    }
    kind = chance.choice(list(kinds))
    kinds[kind]()
    # What the configuration does not use changes nothing, but the split lists every run.
    return Case(f"unused: {kind}", harmless="one more run" if kind.startswith("a run") else "")


def _add_level(folder: Path) -> None:
    """A coarser level of which the metadata says nothing."""
    attributes = (folder / ".zattrs").read_text()
    write_zarr(folder, tomogram_of(RUN)[::2, ::2, ::2], level="1")
    (folder / ".zattrs").write_text(attributes)
