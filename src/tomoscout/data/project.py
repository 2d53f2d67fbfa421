"""The only door to copick: reading and writing everything a copick project holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.geometry import Shape
from tomoscout.data.zarr_files import VolumeError, digest_samples, open_volume, remove_volume, write_volume
from tomoscout.machine.errors import TomoscoutError, cut, shown
from tomoscout.machine.files import digest, digest_folder, write_text
from tomoscout.options.names import Source, TomogramUri

OURS = "tomoscout"
"""The key under which is kept, in attributes and picks files, what something was made from."""


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


class Probabilities(NamedTuple):
    """Which class probabilities: the feature volume `name` of a kind of tomogram (its URI)."""

    tomogram: str
    name: str

    def __str__(self) -> str:
        return f"{self.name} of {self.tomogram}"


Written = Source | Segmentation | Probabilities
"""What tomoscout writes into a project."""

EXAMPLE = Path("/path/to/copick.json")
"""The path in the documentation, which people copy."""

RULES = {"targets": "make_targets", "segment": "segment_runs", "localize": "localize_runs"}
"""The rules of the stages that write into a project."""

OF_OTHERS = ""
"""What stands for the inputs of something that tomoscout has not written, or that was changed since."""

DAMAGED = "damaged"
"""The same of picks whose file cannot be read."""


class TomogramFound(NamedTuple):
    """A tomogram of a run: its shape (z, y, x), a digest of its content, and why it cannot be read, if it cannot."""

    shape: Shape | None
    digest: str
    problem: str | None


class PicksFound(NamedTuple):
    """A set of picks of a run: how many points, the digest of the points, their positions (N, 3) as x, y, z in Å."""

    total: int
    digest: str
    positions: NDArray[np.float64]


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
        try:
            self._runs = {run.name: run for run in self._root.query()}
        except Exception as error:
            # Every kind of storage has errors of its own.
            raise TomoscoutError(
                f"project {self.name} ({self.config}): cannot be listed ({cut(str(error) or repr(error))})"
            ) from None
        return sorted(self._runs)

    def passed_over(self, run: str) -> list[str]:
        """Files and folders of a run whose names copick cannot read: no picks, no voxel spacing."""
        return list(getattr(self._run(run), "passed_over", ()))

    def _run(self, name: str) -> Any:
        if name not in self._runs:
            run = self._root.get_run(name)
            if run is None:
                raise TomoscoutError(f"project {self.name} ({self.config}): no run '{name}'")
            self._runs[name] = run
        return self._runs[name]

    def _entry(self, run: str, wanted: Written) -> Any:
        """Copick's entry of something, or None where there is none."""
        owner = self._run(run)
        if isinstance(wanted, Segmentation):
            found = (entry for entry in _volumetric(owner) if _describe(entry) == wanted)
            return next(found, None)
        if isinstance(wanted, Probabilities):
            return self._tomogram(run, wanted.tomogram).get_features(wanted.name)
        found = owner.get_picks(object_name=wanted.name, user_id=wanted.user, session_id=wanted.session)
        return found[0] if found else None

    # Who made what

    def made_from(self, run: str, wanted: Written) -> str | None:
        """The digest that was given as `inputs` when something was written; `OF_OTHERS` where tomoscout has not written
        it or its content was changed since, `DAMAGED` where it cannot be read, None where it is not there."""
        entry = self._entry(run, wanted)
        if entry is None:
            return None
        try:
            if isinstance(wanted, Source):
                values = self._picks_file(entry, run, wanted)
                content = digest(values.get("points"))
            else:
                values = json.loads(entry.fs.cat_file(f"{entry.path}/.zattrs"))
                content = digest_samples(_location(entry, entry.path) / "0")
            notes = values.get(OURS, {})
            inputs = notes.get("inputs", OF_OTHERS) if notes.get("content") == content else OF_OTHERS
        except FileNotFoundError:
            return None if isinstance(wanted, Source) else OF_OTHERS
        except TomoscoutError:
            return DAMAGED
        except (ValueError, AttributeError):
            return OF_OTHERS
        return inputs if isinstance(inputs, str) else OF_OTHERS

    def require(self, run: str, wanted: Written, inputs: str, stage: str) -> None:
        """Refuse to go on with something that is gone, or that was written from other inputs than the results say.

        Raises:
            TomoscoutError: it is gone, or another's; `stage` makes it.
        """
        found = self.made_from(run, wanted)
        what = f"{self.name}/{run}: {kind_of(wanted)} {wanted}"
        again = f"run the {stage} stage again (snakemake … --forcerun {RULES[stage]})"
        if found is None:
            raise TomoscoutError(f"{what} is not there; {again}")
        if found != inputs:
            raise TomoscoutError(
                f"{what} is not the one that these results have made: something else has written it since; {again}, or "
                "give one of the two another name"
            )

    def digest_written(self, run: str, wanted: Segmentation | Probabilities) -> str:
        """The digest of a volume as it was returned when it was written, taken again from its files."""
        entry = self._entry(run, wanted)
        if entry is None:
            raise TomoscoutError(f"{self.name}/{run}: no {kind_of(wanted)} {wanted}")
        return digest_folder(_location(entry, entry.path))

    def delete(self, run: str, wanted: Segmentation | Probabilities) -> None:
        """Delete a volume if it exists, at once for whoever reads it."""
        remove_volume(self._place(run, wanted))
        self._refresh(run, wanted)

    def _place(self, run: str, wanted: Written) -> Path:
        """Where something is written: in the overlay, as copick names it."""
        if isinstance(wanted, Probabilities):
            tomogram = self._tomogram(run, wanted.tomogram)
            return _local(tomogram.fs_overlay, f"{tomogram.overlay_stem}_{wanted.name}_features.zarr")
        owner = self._run(run)
        if isinstance(wanted, Source):
            name = f"Picks/{wanted.user}_{wanted.session}_{wanted.name}.json"
        else:
            kind = "-multilabel" if wanted.is_multilabel else ""
            name = f"Segmentations/{wanted.voxel_spacing:.3f}_{wanted.user}_{wanted.session}_{wanted.name}{kind}.zarr"
        return _local(owner.fs_overlay, f"{owner.overlay_path}/{name}")

    def _refresh(self, run: str, wanted: Written) -> None:
        """Let copick look again for what it has listed before."""
        if isinstance(wanted, Probabilities):
            self._tomogram(run, wanted.tomogram).refresh_features()
        elif isinstance(wanted, Source):
            self._run(run).refresh_picks()
        else:
            self._run(run).refresh_segmentations()

    # Tomograms

    def tomograms(self, run: str) -> dict[str, TomogramFound]:
        """Every tomogram of a run by its URI."""
        found: dict[str, TomogramFound] = {}
        for spacing in self._run(run).voxel_spacings:
            for tomogram in spacing.tomograms:
                uri = str(TomogramUri(tomogram.tomo_type, float(spacing.voxel_size)))
                store = tomogram.zarr()
                try:
                    z, y, x = open_volume(store.fs, store.path, float(spacing.voxel_size)).shape
                    found[uri] = TomogramFound((z, y, x), _digest_content(store.fs, store.path), None)
                except (VolumeError, OSError) as error:
                    found[uri] = TomogramFound(None, "", cut(str(error)))
        return found

    def read_tomogram(self, run: str, uri: str, region: tuple[slice, ...] = ()) -> NDArray[np.float32]:
        """A tomogram, or a region of it, as float32 (z, y, x).

        Raises:
            TomoscoutError: no such tomogram, missing chunks, NaN in it, or one value throughout.
        """
        what = f"{self.name}/{run}: tomogram {uri}"
        spacing = TomogramUri.parse(uri).voxel_spacing
        volume = _read(self._tomogram(run, uri), spacing, what, region).astype(np.float32, copy=False)
        low, high = float(volume.min()), float(volume.max())
        if not np.isfinite(low) or not np.isfinite(high):
            raise TomoscoutError(f"{what} holds NaN or infinite values")
        if low == high:
            raise TomoscoutError(f"{what} is constant (every voxel is {low:g})")
        return volume

    def write_tomogram(self, run: str, uri: str, volume: NDArray[np.floating]) -> None:
        """Write a float32 tomogram (z, y, x), replacing an earlier one."""
        kind = TomogramUri.parse(uri)
        owner = self._root.get_run(run) or self._root.new_run(run)
        spacing = owner.get_voxel_spacing(kind.voxel_spacing) or owner.new_voxel_spacing(kind.voxel_spacing)
        self._runs[run] = owner
        path = _local(owner.fs_overlay, f"{spacing.overlay_path}/{kind.algorithm}.zarr")
        write_volume(path, volume.astype(np.float32), kind.voxel_spacing)
        spacing.refresh_tomograms()

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
        return sorted(Source(p.pickable_object_name, p.user_id, p.session_id) for p in self._run(run).picks)

    def read_picks(self, run: str, source: Source) -> Picks:
        """The picks of one object, user and session. Empty where there are none."""
        entry = self._entry(run, source)
        points = self._points(entry, run, source) if entry else []
        if not points:
            return Picks.at(np.zeros((0, 3)))
        positions, transforms = self._places(points, run, source)
        try:
            scores = np.array([1.0 if p.get("score") is None else p["score"] for p in points], dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise TomoscoutError(f"{self.name}/{run}: picks {source}: a point is malformed ({shown(error)})") from None
        if not np.isfinite(scores).all():
            raise TomoscoutError(f"{self.name}/{run}: picks {source}: a score is NaN or infinite")
        return Picks(positions, scores, transforms)

    def find_picks(self, run: str, source: Source) -> PicksFound:
        """What a set of picks holds.

        Raises:
            TomoscoutError: its file cannot be used.
        """
        points = self._points(self._entry(run, source), run, source)
        try:
            return PicksFound(len(points), digest(points), self._places(points, run, source)[0])
        except ValueError:
            raise TomoscoutError(f"{self.name}/{run}: picks {source}: a value is NaN or infinite") from None

    def _places(
        self, points: list[dict[str, Any]], run: str, source: Source
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Positions, and transforms without their shifts. Copick: the centre of a particle is its location plus the
        shift of its transform."""
        try:
            positions = np.array([[p["location"][axis] for axis in "xyz"] for p in points], dtype=np.float64)
            transforms = np.array([p.get("transformation_") or np.eye(4) for p in points], dtype=np.float64)
            positions = positions.reshape(len(points), 3)
            transforms = transforms.reshape(len(points), 4, 4)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TomoscoutError(f"{self.name}/{run}: picks {source}: a point is malformed ({shown(error)})") from None
        positions = positions + transforms[:, :3, 3]
        transforms[:, :3, 3] = 0
        if not np.isfinite(positions).all():
            raise TomoscoutError(f"{self.name}/{run}: picks {source}: a position is NaN or infinite")
        return positions, transforms

    def _points(self, entry: Any, run: str, source: Source) -> list[dict[str, Any]]:
        where = f"{self.name}/{run}: picks {source}"
        if not hasattr(entry, "path"):
            return [point.model_dump() for point in entry.points]
        try:
            values = self._picks_file(entry, run, source)
        except FileNotFoundError:
            raise TomoscoutError(f"{where}: no file {entry.path}") from None
        unit = values.get("unit") or "angstrom"
        if unit != "angstrom":
            raise TomoscoutError(
                f"{where}: its unit is {shown(unit)}, expected 'angstrom': copick's programs take every position as Å"
            )
        if not isinstance(values.get("points", ""), list | None):
            raise TomoscoutError(f"{self.name}/{run}: {entry.path}: not a copick picks file (no list 'points')")
        return values["points"] or []

    def _picks_file(self, entry: Any, run: str, source: Source) -> dict[str, Any]:
        # Copick validates point by point, which costs more than the whole of making a target; the file is read here.
        if not hasattr(entry, "path"):
            return {}
        try:
            values = json.loads(entry.fs.cat_file(entry.path))
        except FileNotFoundError:
            raise
        except (ValueError, OSError, RecursionError) as error:
            reason = cut(str(error) or repr(error))
            raise TomoscoutError(f"{self.name}/{run}: {entry.path}: not a copick picks file ({reason})") from None
        if not isinstance(values, dict):
            raise TomoscoutError(f"{self.name}/{run}: {entry.path}: not a copick picks file (no list 'points')")
        return values

    def write_picks(self, run: str, source: Source, picks: Picks, inputs: str = OF_OTHERS) -> None:
        """Write picks, replacing earlier ones of the same object, user and session, even by none at all. `inputs`: the
        digest of what they were made from, kept with them."""
        if source.name not in self.objects:
            raise TomoscoutError(f"project {self.name} ({self.config}): no pickable object '{source.name}'")
        rows = zip(picks.positions.tolist(), picks.transforms.tolist(), picks.scores.tolist(), strict=True)
        points = [
            {
                "location": dict(zip("xyz", position, strict=True)),
                "transformation_": transform,
                "instance_id": 0,
                "score": score,
            }
            for position, transform, score in rows
        ]
        values = {
            "pickable_object_name": source.name,
            "user_id": source.user,
            "session_id": source.session,
            "run_name": run,
            "voxel_spacing": None,
            "unit": "angstrom",
            "points": points,
            "trust_orientation": True,
            **({OURS: {"inputs": inputs, "content": digest(points)}} if inputs else {}),
        }
        write_text(self._place(run, source), json.dumps(values, indent=4, allow_nan=False))
        self._refresh(run, source)

    # Segmentations

    def segmentations(self, run: str) -> list[Segmentation]:
        """Every binary and multilabel segmentation of a run."""
        return [_describe(entry) for entry in _volumetric(self._run(run))]

    def digest_segmentation(self, run: str, wanted: Segmentation) -> str:
        """A digest that changes with the content of a segmentation."""
        entry = self._segmentation(run, wanted)
        try:
            return _digest_content(entry.fs, entry.path)
        except OSError as error:
            raise TomoscoutError(f"{self.name}/{run}: segmentation {wanted}: {cut(str(error))}") from None

    def _segmentation(self, run: str, wanted: Segmentation) -> Any:
        entry = self._entry(run, wanted)
        if entry is None:
            have = ", ".join(str(s) for s in self.segmentations(run)) or "none"
            raise TomoscoutError(f"{self.name}/{run}: no segmentation {wanted}; found: {have}")
        return entry

    def read_segmentation(
        self,
        run: str,
        wanted: Segmentation,
        region: tuple[slice, ...] = (),
        *,
        allow_missing_chunks: bool = False,
    ) -> NDArray[Any]:
        """A segmentation, or a region of it, as the numbers stored (z, y, x)."""
        what = f"{self.name}/{run}: segmentation {wanted}"
        entry = self._segmentation(run, wanted)
        return _read(entry, wanted.voxel_spacing, what, region, allow_missing_chunks=allow_missing_chunks)

    def write_segmentation(
        self, run: str, wanted: Segmentation, labels: NDArray[np.integer], attributes: Mapping[str, Any]
    ) -> str:
        """Write labels (z, y, x) as they are, replacing an earlier segmentation at once; `attributes`, "inputs" among
        them, are kept beside them under "tomoscout". Returns the digest of the data."""
        path = self._place(run, wanted)
        write_volume(path, labels, wanted.voxel_spacing, attributes)
        self._refresh(run, wanted)
        return digest_folder(path)

    # Probabilities: a feature volume of the tomogram, classes first

    def write_probabilities(
        self, run: str, wanted: Probabilities, probabilities: NDArray[np.uint8], attributes: Mapping[str, Any]
    ) -> str:
        """Write quantised class probabilities (class, z, y, x); `attributes` as of `write_segmentation`. Returns their
        digest."""
        path = self._place(run, wanted)
        write_volume(path, probabilities, TomogramUri.parse(wanted.tomogram).voxel_spacing, attributes)
        self._refresh(run, wanted)
        return digest_folder(path)

    def read_probabilities(self, run: str, wanted: Probabilities) -> NDArray[np.uint8]:
        """Quantised class probabilities (class, z, y, x)."""
        entry = self._entry(run, wanted)
        if entry is None:
            raise TomoscoutError(f"{self.name}/{run}: no probabilities {wanted}; run the segment stage")
        spacing = TomogramUri.parse(wanted.tomogram).voxel_spacing
        return _read(entry, spacing, f"{self.name}/{run}: probabilities {wanted}", channels=1)


def _volumetric(run: Any) -> list[Any]:
    return [entry for entry in run.segmentations if not entry.is_panoptic]


def _describe(entry: Any) -> Segmentation:
    return Segmentation(entry.name, entry.user_id, entry.session_id, float(entry.voxel_size), entry.is_multilabel)


def kind_of(wanted: Written) -> str:
    """What something is, for messages."""
    kinds = {Source: "picks", Segmentation: "segmentation", Probabilities: "probabilities"}
    return kinds[type(wanted)]


def _read(
    entry: Any,
    voxel_spacing: float,
    what: str,
    region: tuple[slice, ...] = (),
    *,
    channels: int = 0,
    allow_missing_chunks: bool = False,
) -> NDArray[Any]:
    store = entry.zarr()
    try:
        volume = open_volume(store.fs, store.path, voxel_spacing, channels)
        return volume.read(region, allow_missing_chunks=allow_missing_chunks)
    except VolumeError as error:
        raise TomoscoutError(f"{what}: {error}") from None


def _digest_content(fs: Any, path: str) -> str:
    """A digest that changes with the content of a volume: of samples of its files where they lie on this machine, else
    of what their storage says of them."""
    if _is_local(fs):
        return digest_samples(Path(path))
    stamps = ("size", "mtime", "LastModified", "ETag")
    files = fs.find(path, detail=True)
    return digest(
        {name.removeprefix(path): [str(facts[key]) for key in stamps if key in facts] for name, facts in files.items()}
    )


def _is_local(fs: Any) -> bool:
    return "file" in fs.protocol or "local" in fs.protocol


def _local(fs: Any, path: str) -> Path:
    if not _is_local(fs):
        raise TomoscoutError(f"{path}: the overlay must be a local folder for results to be written")
    return Path(path)


def _location(entry: Any, path: str) -> Path:
    """The local folder of a copick entry."""
    return _local(entry.fs, path)


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
        hint = "; that is the example's: write the path of yours under projects" if config == EXAMPLE else ""
        raise TomoscoutError(f"{config}: no such copick config{hint}") from None
    except (ValueError, RecursionError) as error:
        raise TomoscoutError(f"{config}: not a copick config ({cut(str(error))})") from None
    except OSError as error:
        raise TomoscoutError(f"{config}: not a copick config ({error.strerror})") from None
    if not isinstance(values, dict) or not isinstance(values.get("pickable_objects"), list):
        raise TomoscoutError(f"{config}: not a copick config (no list 'pickable_objects')")
    return values


def read_objects(config: Path) -> dict[str, PickableObject]:
    """The pickable objects of a copick config by name, without opening the project.

    Raises:
        TomoscoutError: an object is malformed, or two have one name.
    """
    objects: dict[str, PickableObject] = {}
    for entry in read_copick_config(config)["pickable_objects"]:
        try:
            found = _object(entry)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TomoscoutError(f"{config}: a pickable object is malformed ({shown(error)})") from None
        if found.name in objects:
            raise TomoscoutError(f"{config}: two pickable objects have the name '{found.name}'; give each its own")
        objects[found.name] = found
    return objects


def _object(entry: Mapping[str, Any]) -> PickableObject:
    name, is_particle, label, radius = entry["name"], entry["is_particle"], entry.get("label"), entry.get("radius")
    if not isinstance(is_particle, bool):
        raise ValueError(f"is_particle of '{name}' is {shown(is_particle)}, expected true or false")
    if label is not None and (isinstance(label, bool) or not isinstance(label, int) or not 0 < label < 2**16):
        raise ValueError(f"label of '{name}' is {shown(label)}, expected a whole number from 1 to 65535")
    color = tuple(entry.get("color") or (100, 100, 100, 255))
    if len(color) != 4:
        raise ValueError(f"color of '{name}' is {shown(color)}, expected four numbers")
    return PickableObject(str(name), is_particle, label, None if radius is None else float(radius), color)


def _open(config: Path) -> Any:
    values = read_copick_config(config)
    try:
        if values.get("config_type", "filesystem") == "filesystem":
            # copick.from_file imports the clients of every storage it knows, which takes longer than a target.
            from copick.impl.filesystem import CopickConfigFSSpec

            from tomoscout.data.copick_names import TolerantRoot

            return TolerantRoot(CopickConfigFSSpec(**values))
        import copick

        return copick.from_file(str(config))
    except Exception as error:
        # Every kind of storage has errors of its own.
        raise TomoscoutError(f"{config}: not a copick config ({cut(str(error) or repr(error))})") from None
