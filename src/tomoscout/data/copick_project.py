"""The interface to copick: only this module and `copick_listing` call it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tomoscout.data.copick_config import read_copick_config
from tomoscout.data.ome_zarr import VolumeError
from tomoscout.data.written import Probabilities, Segmentation, Written
from tomoscout.data.zarr_files import Volume, digest_samples, open_volume
from tomoscout.machine.errors import TomoscoutError, cut
from tomoscout.machine.files import digest
from tomoscout.options.names import Source, TomogramUri

REMOTE = {"cryoet_data_portal": "the CryoET data portal", "mlcroissant": "the Croissant manifest"}
"""What a copick config refers to, by its type, where that is no folder."""


class CopickProject:
    """Copick's entries (tomograms, picks, segmentations, features) of a project, and the paths of new ones.

    An entry is an object of copick's; `storage_of` and `read_picks_file` give its content.

    Raises:
        TomoscoutError: from every method, where a run or tomogram is missing or the storage fails.
    """

    def __init__(self, name: str, config: Path) -> None:
        self.name = name
        self.config = config
        self._root = _open(config)
        self._runs: dict[str, Any] = {}

    def run_names(self) -> list[str]:
        """All runs, sorted."""
        try:
            self._runs = {run.name: run for run in self._root.query()}
        except Exception as error:
            # Every kind of storage has its own exceptions.
            raise TomoscoutError(
                f"project {self.name} ({self.config}): cannot be listed ({cut(str(error) or repr(error))})"
            ) from None
        return sorted(self._runs)

    def passed_over(self, run: str) -> list[str]:
        """Files and folders of a run whose names copick cannot parse as picks or voxel spacings."""
        return list(getattr(self._run(run), "passed_over", ()))

    def tomograms(self, run: str) -> dict[TomogramUri, Any]:
        """The tomograms of a run."""
        return {
            TomogramUri(tomogram.tomo_type, float(spacing.voxel_size)): tomogram
            for spacing in self._run(run).voxel_spacings
            for tomogram in spacing.tomograms
        }

    def tomogram(self, run: str, uri: str) -> Any:
        """A tomogram of a run."""
        there = self.tomograms(run)
        found = there.get(TomogramUri.parse(uri))
        if found is None:
            have = ", ".join(sorted(map(str, there))) or "none"
            raise TomoscoutError(f"{self.name}/{run}: no tomogram {uri}; found: {have}")
        return found

    def create_run(self, run: str) -> None:
        """Create a run if it does not exist."""
        self._runs[run] = self._root.get_run(run) or self._root.new_run(run)

    def new_tomogram(self, run: str, uri: str) -> Path:
        """The path of a new tomogram; creates the run and the voxel spacing if they do not exist."""
        kind = TomogramUri.parse(uri)
        self.create_run(run)
        owner = self._runs[run]
        spacing = owner.get_voxel_spacing(kind.voxel_spacing) or owner.new_voxel_spacing(kind.voxel_spacing)
        return _local(owner.fs_overlay, f"{spacing.overlay_path}/{kind.algorithm}.zarr")

    def pick_sources(self, run: str) -> list[Source]:
        """Every set of picks of a run."""
        return sorted(Source(p.pickable_object_name, p.user_id, p.session_id) for p in self._run(run).picks)

    def segmentations(self, run: str) -> list[tuple[Segmentation, Any]]:
        """The binary and multilabel segmentations of a run, with their entries."""
        return [(_describe(entry), entry) for entry in self._run(run).segmentations if not entry.is_panoptic]

    def find(self, run: str, wanted: Written) -> Any:
        """The entry of an output of tomoscout, or None if it does not exist."""
        if isinstance(wanted, Segmentation):
            return next((entry for found, entry in self.segmentations(run) if found == wanted), None)
        if isinstance(wanted, Probabilities):
            return self.tomogram(run, wanted.tomogram).get_features(wanted.name)
        if isinstance(wanted, TomogramUri):
            return self.tomograms(run).get(wanted)
        found = self._run(run).get_picks(object_name=wanted.name, user_id=wanted.user, session_id=wanted.session)
        return found[0] if found else None

    def place(self, run: str, wanted: Source | Segmentation | Probabilities) -> Path:
        """The path where an output is written: in the overlay, with copick's name."""
        if isinstance(wanted, Probabilities):
            tomogram = self.tomogram(run, wanted.tomogram)
            return _local(tomogram.fs_overlay, f"{tomogram.overlay_stem}_{wanted.name}_features.zarr")
        owner = self._run(run)
        if isinstance(wanted, Source):
            name = f"Picks/{wanted.user}_{wanted.session}_{wanted.name}.json"
        else:
            kind = "-multilabel" if wanted.is_multilabel else ""
            name = f"Segmentations/{wanted.voxel_spacing:.3f}_{wanted.user}_{wanted.session}_{wanted.name}{kind}.zarr"
        return _local(owner.fs_overlay, f"{owner.overlay_path}/{name}")

    def refresh(self, run: str, wanted: Written) -> None:
        """Make copick list entries again after something was written or removed."""
        if isinstance(wanted, TomogramUri):
            self._run(run).get_voxel_spacing(wanted.voxel_spacing).refresh_tomograms()
        elif isinstance(wanted, Probabilities):
            self.tomogram(run, wanted.tomogram).refresh_features()
        elif isinstance(wanted, Source):
            self._run(run).refresh_picks()
        else:
            self._run(run).refresh_segmentations()

    def _run(self, name: str) -> Any:
        if name not in self._runs and self._root.config.config_type == "cryoet_data_portal":
            # Copick's `get_run` asks the portal once more for each run, though all are in its list.
            self.run_names()
        elif name not in self._runs and (run := self._root.get_run(name)) is not None:
            self._runs[name] = run
        if name not in self._runs:
            raise TomoscoutError(f"project {self.name} ({self.config}): no run '{name}'")
        return self._runs[name]


def _describe(entry: Any) -> Segmentation:
    return Segmentation(entry.name, entry.user_id, entry.session_id, float(entry.voxel_size), entry.is_multilabel)


def _open(config: Path) -> Any:
    values = read_copick_config(config)
    if values.get("config_type") == "mlcroissant" and not values.get("overlay_root"):
        # Copick would write beside the data, and list what is there only from the manifest's tables.
        raise TomoscoutError(f"{config}: overlay_root is missing; give a folder, into which results are written")
    try:
        if values.get("config_type", "filesystem") == "filesystem":
            # copick.from_file imports the clients of every storage it knows, which takes longer than making a target.
            from copick.impl.filesystem import CopickConfigFSSpec

            from tomoscout.data.copick_listing import TolerantRoot

            return TolerantRoot(CopickConfigFSSpec(**values))
        import copick

        # The clients of remote storage write some hundred lines about each of their attempts.
        with _without_warnings():
            return copick.from_file(str(config))
    except ValueError as error:
        raise TomoscoutError(f"{config}: not a copick config ({cut(str(error))})") from None
    except Exception as error:
        # Every kind of storage has its own exceptions.
        where = REMOTE.get(values.get("config_type", ""), "its storage")
        reason = cut(str(error) or repr(error))
        raise TomoscoutError(f"{config}: {where} cannot be reached or read; is there a network? ({reason})") from None


@contextmanager
def _without_warnings() -> Iterator[None]:
    earlier = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(earlier)


def storage_of(entry: Any) -> tuple[Any, str]:
    """The fsspec file system and the path of the zarr store of a volume."""
    store = entry.zarr()
    return store.fs, store.path


def read_volume(
    entry: Any,
    voxel_spacing: float,
    what: str,
    region: tuple[slice, ...] | Callable[[Volume], tuple[slice, ...]] = (),
    *,
    channels: int = 0,
    allow_missing_chunks: bool = False,
) -> NDArray[Any]:
    """A volume, or a region of it, as stored. `region` may be a function of the volume; `what` names it in messages.

    Raises:
        TomoscoutError: it cannot be read.
    """
    try:
        volume = open_volume(*storage_of(entry), voxel_spacing, channels)
        place = region(volume) if callable(region) else region
        return volume.read(place, allow_missing_chunks=allow_missing_chunks)
    except VolumeError as error:
        raise TomoscoutError(f"{what}: {error}") from None


def open_whole_volume(entry: Any, voxel_spacing: float, what: str, *, allow_missing_chunks: bool = False) -> Volume:
    """A volume to be read part by part, none of whose chunks are missing, unless that is allowed. `what` names it
    in messages.

    Raises:
        TomoscoutError: it cannot be read.
    """
    try:
        volume = open_volume(*storage_of(entry), voxel_spacing)
        if not allow_missing_chunks:
            volume.check_chunks()
    except VolumeError as error:
        raise TomoscoutError(f"{what}: {error}") from None
    return volume


def digest_content(fs: Any, path: str) -> str:
    """A digest that changes with the content of a volume: of samples of its files on a local disk, else of the sizes,
    times and tags that the storage gives."""
    if is_local(fs):
        return digest_samples(Path(path))
    stamps = ("size", "mtime", "LastModified", "ETag")
    files = fs.find(path, detail=True)
    return digest(
        {name.removeprefix(path): [str(facts[key]) for key in stamps if key in facts] for name, facts in files.items()}
    )


def is_local(fs: Any) -> bool:
    """Whether an fsspec file system is a local disk."""
    return "file" in fs.protocol or "local" in fs.protocol


def local_folder(entry: Any) -> Path:
    """The folder of a volume.

    Raises:
        TomoscoutError: it is not on a local disk.
    """
    return _local(*storage_of(entry))


def _local(fs: Any, path: str) -> Path:
    if not is_local(fs):
        raise TomoscoutError(f"{path}: the overlay must be a local folder for results to be written")
    return Path(path)


def read_attributes(entry: Any) -> Any:
    """The attributes of a volume that tomoscout may have written."""
    fs, path = storage_of(entry)
    return json.loads(fs.cat_file(f"{path}/.zattrs"))


def read_picks_file(entry: Any, run: str) -> dict[str, Any]:
    """The content of a picks file, a mapping. `run`: `project/run`, for messages.

    The file is read here: copick validates point by point, which takes longer than making a target.

    Raises:
        FileNotFoundError: there is no such file.
        TomoscoutError: it is not a copick picks file.
    """
    # Of the data portal, which has another format.
    if not entry.path.endswith(".json"):
        return {"points": [point.model_dump() for point in entry.points]}
    try:
        values = json.loads(entry.fs.cat_file(entry.path))
    except FileNotFoundError:
        raise
    except (ValueError, OSError, RecursionError) as error:
        reason = cut(str(error) or repr(error))
        raise TomoscoutError(f"{run}: {entry.path}: not a copick picks file ({reason})") from None
    if not isinstance(values, dict):
        raise TomoscoutError(f"{run}: {entry.path}: not a copick picks file (no list 'points')")
    return values
