"""Commands and links that open what was found in napari, ChimeraX and neuroglancer."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tomoscout.data.inventory import RunRecord
from tomoscout.data.project import Project
from tomoscout.options.config import Config
from tomoscout.options.names import TomogramUri
from tomoscout.plan.predictions import predicted_segmentation
from tomoscout.report.dataset import Thumbnail
from tomoscout.report.serve import HOST, NEUROGLANCER, PORT

RUNS = 200
"""Largest number of runs of a project that are listed."""

_RUNS = "ExperimentRuns"
"""The folder of all runs in a copick project."""


@dataclass(frozen=True)
class OpenRun:
    """How to open a run: its command for ChimeraX, and its link to neuroglancer (None where its tomogram is not on a
    local disk)."""

    run: str
    chimerax: str
    neuroglancer: str | None


@dataclass(frozen=True)
class OpenProject:
    """How to open a project: its command for napari, the command that serves it to neuroglancer (None where nothing of
    it is on a local disk), its first runs, and the number of all."""

    project: str
    napari: str
    serve: str | None
    runs: list[OpenRun]
    total: int


def viewers(config: Config, records: Sequence[RunRecord], thumbnails: Sequence[Thumbnail] = ()) -> list[OpenProject]:
    """How to open the given runs, by project. Paths are as in the configuration, or from the working directory.
    `thumbnails`: their levels set the contrast."""
    levels = {picture.caption: picture.levels for picture in thumbnails if picture.tomogram == config.segment_tomogram}
    found = []
    for name, path in config.projects.items():
        own = [record for record in records if record.project == name]
        if own:
            project, roots = Project(name, Path(path)), list[Path]()
            runs = [_open_run(config, project, record, roots, levels.get(record.key)) for record in own[:RUNS]]
            words = ["tomoscout", "serve", *(_from_here(root) for root in roots)]
            napari = shlex.join(["napari-copick", "run", "--config", path])
            found.append(OpenProject(name, napari, shlex.join(words) if roots else None, runs, len(own)))
    return found


def _open_run(
    config: Config, project: Project, record: RunRecord, roots: list[Path], levels: tuple[float, float] | None
) -> OpenRun:
    """`roots`: the folders to serve, to which those of the run are added."""
    picks = f"*:{config.localize.user}/{config.session}"
    commands = [
        f"copick start {_quoted(str(project.config))}",
        f"copick open run {_quoted(record.run)}",
        f'copick open picks "{picks}"',
    ]
    tomogram, labels = TomogramUri.parse(config.segment_tomogram), predicted_segmentation(config)
    layers: list[dict[str, Any]] = []
    for kind, label, wanted in (("image", str(tomogram), tomogram), ("segmentation", labels.name, labels)):
        folder = project.folder_of(record.run, wanted)
        if folder is not None and _RUNS in folder.parent.parts:
            layers.append({"type": kind, "source": f"zarr://{_served(folder, roots)}", "name": label})
    is_there = bool(layers) and layers[0]["type"] == "image"
    if is_there and levels is not None:
        shown = [float(f"{level:.4g}") for level in levels]
        layers[0]["shaderControls"] = {"normalized": {"range": shown}}
    scale = [float(f"{config.voxel_spacing:.6g}e-10"), "m"]
    state = {"dimensions": {"x": scale, "y": scale, "z": scale}, "layers": layers, "layout": "4panel"}
    link = f"{NEUROGLANCER}/#!{quote(json.dumps(state, separators=(',', ':')))}"
    return OpenRun(record.key, shlex.join(["chimerax", "--cmd", "; ".join(commands)]), link if is_there else None)


def _served(folder: Path, roots: list[Path]) -> str:
    """The URL of a volume."""
    root = next(parent.parent for parent in folder.parents if parent.name == _RUNS)
    if root not in roots:
        roots.append(root)
    return f"http://{HOST}:{PORT}/{roots.index(root)}/{quote(folder.relative_to(root).as_posix())}"


def _from_here(folder: Path) -> str:
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)


def _quoted(word: str) -> str:
    """A word of a ChimeraX command."""
    return f'"{word}"' if set(word) & set(" ;,#") else word
