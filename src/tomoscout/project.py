"""The only door to copick and zarr: reading and writing everything a copick project holds."""

from __future__ import annotations

import json
import math
import shutil
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscout.config import Source, TomogramUri
from tomoscout.errors import TomoscoutError
from tomoscout.files import digest, digest_folder
from tomoscout.geometry import Shape

LARGEST_CHUNK = 256
"""Voxels along a side, as copick writes them; made smaller so that chunks divide a volume evenly."""


@dataclass(frozen=True)
class PickableObject:
    """An object of the copick config: radius in Å, colour as RGBA bytes."""

    name: str
    is_particle: bool
    label: int | None
    radius: float | None
    color: tuple[int, int, int, int]


@dataclass(frozen=True)
class Picks:
    """Points of one object: positions (N, 3) as x, y, z in Å with the transform's shift added; scores (N,);
    transforms (N, 4, 4) whose shift is zero."""

    positions: NDArray[np.float64]
    scores: NDArray[np.float64]
    transforms: NDArray[np.float64]

    @classmethod
    def at(cls, positions: NDArray[np.floating], scores: NDArray[np.floating] | None = None) -> Picks:
        """Picks at `positions` with scores of 1 unless given and without orientation."""
        count = len(positions)
        return cls(
            np.asarray(positions, dtype=np.float64).reshape(count, 3),
            np.ones(count) if scores is None else np.asarray(scores, dtype=np.float64),
            np.tile(np.eye(4), (count, 1, 1)),
        )

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True)
class Segmentation:
    """Which segmentation: name, user, session, voxel spacing in Å."""

    name: str
    user: str
    session: str
    voxel_spacing: float
    is_multilabel: bool

    def __str__(self) -> str:
        kind = "?multilabel=true" if self.is_multilabel else ""
        return f"{self.name}:{self.user}/{self.session}@{self.voxel_spacing}{kind}"


class Project:
    """One copick project.

    Raises:
        TomoscoutError: from every method, naming project, run and object, where data is missing or broken.
    """

    def __init__(self, name: str, config: Path) -> None:
        self.name = name
        self.config = config
        self._root = _open(config)
        self._runs: dict[str, Any] = {}

    @cached_property
    def objects(self) -> dict[str, PickableObject]:
        """The pickable objects by name, in the order of the copick config."""
        return read_objects(self.config)

    def run_names(self) -> list[str]:
        """All runs, sorted."""
        self._runs = {run.name: run for run in self._root.query()}
        return sorted(self._runs)

    def _run(self, name: str) -> Any:
        if name not in self._runs:
            run = self._root.get_run(name)
            if run is None:
                raise TomoscoutError(f"project {self.name} ({self.config}): no run '{name}'")
            self._runs[name] = run
        return self._runs[name]

    # Tomograms

    def tomograms(self, run: str) -> dict[str, Shape | None]:
        """Every tomogram of a run: URI → shape (z, y, x), or None where its zarr cannot be opened."""
        found: dict[str, Shape | None] = {}
        for spacing in self._run(run).voxel_spacings:
            for tomogram in spacing.tomograms:
                uri = str(TomogramUri(tomogram.tomo_type, float(spacing.voxel_size)))
                try:
                    shape = self._array(tomogram.zarr(), f"tomogram {uri}", run, chunks_matter=False).shape
                    found[uri] = shape if len(shape) == 3 else None
                except TomoscoutError:
                    found[uri] = None
        return found

    def digest_segmentation(self, run: str, wanted: Segmentation) -> str:
        """A digest that changes when the files of a segmentation do: their names, sizes and modification times."""
        entry = self._segmentation(run, wanted)
        files = entry.fs.find(entry.path, detail=True)
        stamp = ("mtime", "LastModified", "ETag")
        return digest(
            {
                name.rpartition(entry.filename)[2]: [
                    facts.get("size"),
                    *(str(facts[key]) for key in stamp if key in facts),
                ]
                for name, facts in files.items()
            }
        )

    def read_tomogram(self, run: str, uri: str, region: tuple[slice, ...] = ()) -> NDArray[np.float32]:
        """A tomogram, or a region of it, as float32 (z, y, x).

        Raises:
            TomoscoutError: no such tomogram, missing chunks, NaN in it, or one value throughout.
        """
        array = self._array(self._tomogram(run, uri).zarr(), f"tomogram {uri}", run)
        volume = self._read(array, region, f"tomogram {uri}", run).astype(np.float32, copy=False)
        low, high = float(volume.min()), float(volume.max())
        if not np.isfinite(low) or not np.isfinite(high):
            raise TomoscoutError(f"{self.name}/{run}: tomogram {uri} holds NaN or infinite values")
        if low == high:
            raise TomoscoutError(f"{self.name}/{run}: tomogram {uri} is constant (every voxel is {low:g})")
        return volume

    def write_tomogram(self, run: str, uri: str, volume: NDArray[np.floating]) -> None:
        """Write a float32 tomogram (z, y, x), replacing an earlier one."""
        kind = TomogramUri.parse(uri)
        owner = self._root.get_run(run) or self._root.new_run(run)
        spacing = owner.get_voxel_spacing(kind.voxel_spacing) or owner.new_voxel_spacing(kind.voxel_spacing)
        found = spacing.get_tomograms(kind.algorithm)
        store = found[0] if found else spacing.new_tomogram(kind.algorithm)
        self._runs[run] = owner
        _write_volume(_location(store, store.overlay_path), volume.astype(np.float32), kind.voxel_spacing)

    def _tomogram(self, run: str, uri: str) -> Any:
        kind = TomogramUri.parse(uri)
        spacing = self._run(run).get_voxel_spacing(kind.voxel_spacing)
        found = spacing.get_tomograms(kind.algorithm) if spacing else []
        if not found:
            have = ", ".join(sorted(self.tomograms(run))) or "none"
            raise TomoscoutError(f"{self.name}/{run}: no tomogram {uri}; found: {have}")
        return found[0]

    # Picks

    def pick_sources(self, run: str) -> list[Source]:
        """Every set of picks of a run."""
        try:
            return sorted(Source(p.pickable_object_name, p.user_id, p.session_id) for p in self._run(run).picks)
        except IndexError:
            raise TomoscoutError(
                f"{self.name}/{run}: a file in its folder Picks is not named user_session_object.json"
            ) from None

    def read_picks(self, run: str, source: Source) -> Picks:
        """The picks of one object, user and session. Empty where there are none."""
        found = self._run(run).get_picks(object_name=source.name, user_id=source.user, session_id=source.session)
        if not found:
            return Picks.at(np.zeros((0, 3)))
        points = self._points(found[0], run, source)
        # copick: the centre of a particle is its location plus the shift of its transform.
        try:
            positions = np.array([[p["location"][axis] for axis in "xyz"] for p in points], dtype=np.float64)
            scores = np.array([1.0 if p.get("score") is None else p["score"] for p in points], dtype=np.float64)
            transforms = np.array([p.get("transformation_") or np.eye(4) for p in points], dtype=np.float64)
            transforms = transforms.reshape(len(points), 4, 4)
        except (KeyError, TypeError, ValueError) as error:
            raise TomoscoutError(f"{self.name}/{run}: picks {source}: a point is malformed ({error!r})") from None
        if not points:
            return Picks.at(np.zeros((0, 3)))
        shifts = transforms[:, :3, 3].copy()
        transforms[:, :3, 3] = 0
        if not np.isfinite(positions + shifts).all():
            raise TomoscoutError(f"{self.name}/{run}: picks {source}: a position is NaN or infinite")
        return Picks(positions + shifts, scores, transforms)

    def digest_picks(self, run: str, source: Source) -> tuple[int, str]:
        """How many points a set of picks has, and the digest of its points."""
        found = self._run(run).get_picks(object_name=source.name, user_id=source.user, session_id=source.session)
        points = self._points(found[0], run, source)
        try:
            return len(points), digest(points)
        except ValueError:
            raise TomoscoutError(f"{self.name}/{run}: picks {source}: a value is NaN or infinite") from None

    def _points(self, picks: Any, run: str, source: Source) -> list[dict[str, Any]]:
        # Copick validates point by point, which costs more than the whole of making a target; the file is read here.
        if not hasattr(picks, "path"):
            return [point.model_dump() for point in picks.points]
        try:
            points = json.loads(picks.fs.cat_file(picks.path))["points"] or []
            if not isinstance(points, list):
                raise TypeError("'points' is not a list")
            return points
        except FileNotFoundError:
            raise TomoscoutError(
                f"{self.name}/{run}: picks {source}: no file {picks.path} (expected user_session_object.json with no "
                "other underscore)"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise TomoscoutError(f"{self.name}/{run}: {picks.path}: not a copick picks file ({error!r})") from None

    def write_picks(self, run: str, source: Source, picks: Picks) -> None:
        """Write picks, replacing earlier ones of the same object, user and session, even by none at all."""
        if source.name not in self.objects:
            raise TomoscoutError(f"project {self.name} ({self.config}): no pickable object '{source.name}'")
        entry = self._run(run).new_picks(
            object_name=source.name, user_id=source.user, session_id=source.session, exist_ok=True
        )
        # Copick names the run only where the file is new; equal picks should be equal files.
        entry.meta.run_name = run
        entry.from_numpy(picks.positions, transforms=picks.transforms, scores=picks.scores)

    # Segmentations

    def segmentations(self, run: str) -> list[Segmentation]:
        """Every binary and multilabel segmentation of a run."""
        return [_describe(entry) for entry in self._run(run).segmentations if not entry.is_panoptic]

    def _segmentation(self, run: str, wanted: Segmentation) -> Any:
        for entry in self._run(run).segmentations:
            if not entry.is_panoptic and _describe(entry) == wanted:
                return entry
        have = ", ".join(str(s) for s in self.segmentations(run)) or "none"
        raise TomoscoutError(f"{self.name}/{run}: no segmentation {wanted}; found: {have}")

    def has_segmentation(self, run: str, wanted: Segmentation) -> bool:
        """Whether a run has this segmentation."""
        return wanted in self.segmentations(run)

    def read_segmentation(
        self,
        run: str,
        wanted: Segmentation,
        region: tuple[slice, ...] = (),
        *,
        allow_missing_chunks: bool = False,
    ) -> NDArray[Any]:
        """A segmentation, or a region of it, as the integers stored (z, y, x)."""
        array = self._array(
            self._segmentation(run, wanted).zarr(),
            f"segmentation {wanted}",
            run,
            chunks_matter=not allow_missing_chunks,
        )
        return self._read(array, region, f"segmentation {wanted}", run)

    def write_segmentation(
        self, run: str, wanted: Segmentation, labels: NDArray[np.integer], attributes: dict[str, Any]
    ) -> str:
        """Write labels (z, y, x), replacing an earlier segmentation in one rename; `attributes` are kept beside
        them under "tomoscout". Returns the digest of the data."""
        owner = self._run(run)
        entry = owner.new_segmentation(
            voxel_size=wanted.voxel_spacing,
            name=wanted.name,
            session_id=wanted.session,
            user_id=wanted.user,
            is_multilabel=wanted.is_multilabel,
            exist_ok=True,
        )
        path = _location(entry, entry.path)
        _write_volume(path, labels, wanted.voxel_spacing, attributes)
        owner.refresh_segmentations()
        return digest_folder(path)

    def digest_written(self, run: str, wanted: Segmentation) -> str:
        """The digest of a segmentation as `write_segmentation` returned it, taken again from its files."""
        entry = self._segmentation(run, wanted)
        return digest_folder(_location(entry, entry.path))

    def delete_segmentation(self, run: str, wanted: Segmentation) -> None:
        """Delete a segmentation if it exists."""
        if self.has_segmentation(run, wanted):
            self._segmentation(run, wanted).delete()

    # Probabilities: a feature volume of the tomogram, classes first

    def write_probabilities(
        self, run: str, uri: str, name: str, probabilities: NDArray[np.uint8], attributes: dict[str, Any]
    ) -> str:
        """Write quantised class probabilities (class, z, y, x) as the feature volume `name`. Returns their digest."""
        tomogram = self._tomogram(run, uri)
        entry = tomogram.new_features(name, exist_ok=True)
        spacing = TomogramUri.parse(uri).voxel_spacing
        path = _location(entry, entry.path)
        _write_volume(path, probabilities, spacing, attributes)
        tomogram.refresh_features()
        return digest_folder(path)

    def digest_probabilities(self, run: str, uri: str, name: str) -> str:
        """The digest of a feature volume as `write_probabilities` returned it, taken again from its files."""
        entry = self._tomogram(run, uri).get_features(name)
        if entry is None:
            raise TomoscoutError(f"{self.name}/{run}: no probabilities '{name}' for {uri}")
        return digest_folder(_location(entry, entry.path))

    def read_probabilities(self, run: str, uri: str, name: str) -> NDArray[np.uint8]:
        """Quantised class probabilities (class, z, y, x)."""
        entry = self._tomogram(run, uri).get_features(name)
        if entry is None:
            raise TomoscoutError(f"{self.name}/{run}: no probabilities '{name}' for {uri}; run the segment stage")
        what = f"probabilities {name}"
        return self._read(self._array(entry.zarr(), what, run), (), what, run)

    def has_probabilities(self, run: str, uri: str, name: str) -> bool:
        """Whether a run has this feature volume."""
        return self._tomogram(run, uri).get_features(name) is not None

    def delete_probabilities(self, run: str, uri: str, name: str) -> None:
        """Delete a feature volume if it exists."""
        if self.has_probabilities(run, uri, name):
            self._tomogram(run, uri).get_features(name).delete()

    # Zarr

    def _array(self, store: Any, what: str, run: str, *, chunks_matter: bool = True) -> Any:
        import zarr

        try:
            array = zarr.open_array(store, path="0", mode="r")
        except (KeyError, ValueError, TypeError, AttributeError, OSError, zarr.errors.MetadataError) as error:
            raise TomoscoutError(f"{self.name}/{run}: {what}: no readable zarr array '0' ({error!r})") from None
        if chunks_matter and (there := array.nchunks_initialized) != array.nchunks:
            raise TomoscoutError(
                f"{self.name}/{run}: {what} is truncated: {there} of {array.nchunks} chunks are there, "
                "the others would be read as background"
            )
        return array

    def _read(self, array: Any, region: tuple[slice, ...], what: str, run: str) -> NDArray[Any]:
        try:
            return np.asarray(array[region or ...])
        except (RuntimeError, ValueError, OSError, EOFError, zlib.error) as error:
            raise TomoscoutError(f"{self.name}/{run}: {what}: a chunk cannot be decoded ({error})") from None


def create_project(folder: Path, objects: Iterable[PickableObject], name: str) -> Path:
    """Make an empty copick project in `folder`; returns its config file."""
    config = {
        "name": name,
        "description": "",
        "version": "1.31.0",
        "config_type": "filesystem",
        "user_id": "tomoscout",
        "session_id": "0",
        "overlay_root": f"local://{folder.resolve()}",
        "overlay_fs_args": {"auto_mkdir": True},
        "pickable_objects": [
            {
                "name": entry.name,
                "is_particle": entry.is_particle,
                "label": entry.label,
                "radius": entry.radius,
                "color": list(entry.color),
            }
            for entry in objects
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "copick.json"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return path


def read_copick_config(config: Path) -> dict[str, Any]:
    """The contents of a copick config file.

    Raises:
        TomoscoutError: the file is missing, is not JSON, or has no pickable objects.
    """
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TomoscoutError(f"{config}: no such copick config") from None
    except ValueError as error:
        raise TomoscoutError(f"{config}: not a copick config ({error})") from None
    if not isinstance(values, dict) or not isinstance(values.get("pickable_objects"), list):
        raise TomoscoutError(f"{config}: not a copick config (no list 'pickable_objects')")
    return values


def read_objects(config: Path) -> dict[str, PickableObject]:
    """The pickable objects of a copick config by name, without opening the project."""
    try:
        return {
            entry["name"]: PickableObject(
                entry["name"],
                bool(entry["is_particle"]),
                entry.get("label"),
                None if entry.get("radius") is None else float(entry["radius"]),
                tuple(entry.get("color") or (100, 100, 100, 255)),
            )
            for entry in read_copick_config(config)["pickable_objects"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise TomoscoutError(f"{config}: a pickable object is malformed ({error!r})") from None


def _open(config: Path) -> Any:
    values = read_copick_config(config)
    try:
        if values.get("config_type", "filesystem") == "filesystem":
            # copick.from_file imports the clients of every storage it knows, which takes longer than a target.
            from copick.impl.filesystem import CopickConfigFSSpec, CopickRootFSSpec

            return CopickRootFSSpec(CopickConfigFSSpec(**values))
        import copick

        return copick.from_file(str(config))
    except (ValueError, AttributeError) as error:
        raise TomoscoutError(f"{config}: not a copick config ({' '.join(str(error).split())})") from None


def _describe(entry: Any) -> Segmentation:
    return Segmentation(entry.name, entry.user_id, entry.session_id, float(entry.voxel_size), entry.is_multilabel)


def _location(entry: Any, path: str) -> Path:
    """The local folder of a copick entry."""
    fs = getattr(entry, "fs", None) or entry.fs_overlay
    if "file" not in fs.protocol and "local" not in fs.protocol:
        raise TomoscoutError(f"{path}: the overlay must be a local folder for results to be written")
    return Path(path)


def _write_volume(
    path: Path, volume: NDArray[Any], voxel_spacing: float, attributes: dict[str, Any] | None = None
) -> None:
    """Write one OME-NGFF 0.4 image with one resolution level into a temporary folder, then rename it to `path`."""
    import zarr
    from numcodecs import blosc

    # Several compressing threads give other bytes each time, and take longer.
    blosc.use_threads = False
    # One name each, so that what a killed process left behind is cleared away.
    temporary, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    channels = volume.ndim - 3
    try:
        group = zarr.open_group(str(temporary), mode="w")
        group.create_dataset(
            "0",
            data=volume,
            chunks=(1,) * channels + tuple(_chunk(size) for size in volume.shape[channels:]),
            dimension_separator="/",
            write_empty_chunks=True,
        )
        group.attrs.update({"multiscales": [_multiscales(voxel_spacing, channels)], "tomoscout": attributes or {}})
        if path.exists():
            # A folder cannot be replaced by a rename; the old one steps aside and goes only when the new one stands.
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _chunk(size: int) -> int:
    return math.ceil(size / math.ceil(size / LARGEST_CHUNK))


def _multiscales(voxel_spacing: float, channels: int) -> dict[str, Any]:
    space = [{"name": axis, "type": "space", "unit": "angstrom"} for axis in "zyx"]
    scale = [1.0] * channels + [float(voxel_spacing)] * 3
    return {
        "version": "0.4",
        "name": "/",
        "axes": [{"name": "c", "type": "channel"}] * channels + space,
        "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}],
    }
