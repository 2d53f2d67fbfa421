"""A copick project: reads and writes its tomograms, picks, segmentations and class probabilities."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tomoscout.data.copick_config import PickableObject, read_objects
from tomoscout.data.copick_project import (
    CopickProject,
    digest_content,
    is_local,
    local_folder,
    open_whole_volume,
    read_attributes,
    read_picks_file,
    read_volume,
    storage_of,
)
from tomoscout.data.geometry import Shape
from tomoscout.data.ome_zarr import VolumeError
from tomoscout.data.open_mask import OpenMask
from tomoscout.data.open_tomogram import OpenTomogram, check_values
from tomoscout.data.picks import Picks, PicksFound, Points, picks_of, places_of, points_of, to_points
from tomoscout.data.written import (
    DAMAGED,
    OF_OTHERS,
    OURS,
    Probabilities,
    Segmentation,
    Written,
    kind_of,
    stamped_inputs,
)
from tomoscout.data.zarr_files import Volume, digest_samples, new_volume, open_volume, remove_volume
from tomoscout.machine.errors import TomoscoutError, cut
from tomoscout.machine.files import digest, digest_folder, write_text
from tomoscout.options.names import Source, TomogramUri


class TomogramFound(NamedTuple):
    """A tomogram of a run: its shape (z, y, x), a digest of its content, and the reason if it cannot be read."""

    shape: Shape | None
    digest: str
    problem: str | None


class Project:
    """One copick project.

    Raises:
        TomoscoutError: from every method, naming project, run and object, where data is missing or broken.
    """

    def __init__(self, name: str, config: Path) -> None:
        self.name = name
        self.config = config
        self._copick = CopickProject(name, config)

    @cached_property
    def objects(self) -> dict[str, PickableObject]:
        """The pickable objects by name, in the order of the copick config."""
        return read_objects(self.config)

    def run_names(self) -> list[str]:
        """All runs, sorted."""
        return self._copick.run_names()

    def create_run(self, run: str) -> None:
        """Create a run if it does not exist."""
        self._copick.create_run(run)

    def passed_over(self, run: str) -> list[str]:
        """Files and folders of a run whose names copick cannot parse as picks or voxel spacings."""
        return self._copick.passed_over(run)

    # Ownership of what is written

    def made_from(self, run: str, wanted: Written) -> str | None:
        """The digest that was given as `inputs` when something was written; `OF_OTHERS` where tomoscout has not written
        it or its content was changed since, `DAMAGED` where it cannot be read, None where it does not exist."""
        entry = self._copick.find(run, wanted)
        if entry is None:
            return None
        try:
            if isinstance(wanted, Source):
                values = read_picks_file(entry, f"{self.name}/{run}")
                return stamped_inputs(values, digest(values.get("points")))
            return stamped_inputs(read_attributes(entry), digest_samples(local_folder(entry) / "0"))
        except FileNotFoundError:
            return None if isinstance(wanted, Source) else OF_OTHERS
        except TomoscoutError:
            return DAMAGED
        except (ValueError, AttributeError):
            return OF_OTHERS

    def require(self, run: str, wanted: Written, inputs: str, stage: str) -> None:
        """Check that something exists and was written from `inputs` by `stage`.

        Raises:
            TomoscoutError: it does not exist, or was written by something else.
        """
        found = self.made_from(run, wanted)
        what = f"{self.name}/{run}: {kind_of(wanted)} {wanted}"
        again = f"run the {stage} stage again (snakemake … --forcerun {stage}_runs)"
        if found is None:
            raise TomoscoutError(f"{what} is not there; {again}")
        if found != inputs:
            raise TomoscoutError(
                f"{what} is not the one that these results have made: something else has written it since; {again}, or "
                "give one of the two another name"
            )

    def digest_written(self, run: str, wanted: Segmentation | Probabilities) -> str:
        """The digest of a volume, computed again from its files, to compare with the digest that was returned when it
        was written."""
        entry = self._copick.find(run, wanted)
        if entry is None:
            raise TomoscoutError(f"{self.name}/{run}: no {kind_of(wanted)} {wanted}")
        return digest_folder(local_folder(entry))

    def delete(self, run: str, wanted: Segmentation | Probabilities) -> None:
        """Delete a volume if it exists, in one step for its readers."""
        remove_volume(self._copick.place(run, wanted))
        self._copick.refresh(run, wanted)

    # Tomograms

    def tomograms(self, run: str) -> dict[str, TomogramFound]:
        """Every tomogram of a run by its URI."""
        found: dict[str, TomogramFound] = {}
        for uri, tomogram in self._copick.tomograms(run).items():
            storage = storage_of(tomogram)
            try:
                z, y, x = open_volume(*storage, uri.voxel_spacing).shape
                found[str(uri)] = TomogramFound((z, y, x), digest_content(*storage), None)
            except (VolumeError, OSError) as error:
                found[str(uri)] = TomogramFound(None, "", cut(str(error)))
        return found

    def read_tomogram(self, run: str, uri: str, region: tuple[slice, ...] = ()) -> NDArray[np.float32]:
        """A tomogram, or a region of it, as float32 (z, y, x).

        Raises:
            TomoscoutError: no such tomogram, missing chunks, NaN in it, or one value throughout.
        """
        what = f"{self.name}/{run}: tomogram {uri}"
        spacing = TomogramUri.parse(uri).voxel_spacing
        volume = read_volume(self._copick.tomogram(run, uri), spacing, what, region).astype(np.float32, copy=False)
        check_values(float(volume.min()), float(volume.max()), what)
        return volume

    def open_tomogram(self, run: str, uri: str) -> OpenTomogram:
        """A tomogram that is read part by part.

        Raises:
            TomoscoutError: no such tomogram, or missing chunks.
        """
        what = f"{self.name}/{run}: tomogram {uri}"
        spacing = TomogramUri.parse(uri).voxel_spacing
        return OpenTomogram(open_whole_volume(self._copick.tomogram(run, uri), spacing, what), what)

    def read_middle(self, run: str, uri: str) -> NDArray[np.float32]:
        """Of the slice in the middle of a tomogram, the part (y, x) around its centre for which the fewest chunks are
        read; not checked as by `read_tomogram`.

        Raises:
            TomoscoutError: no such tomogram, or it cannot be read.
        """
        entry, what = self._copick.tomogram(run, uri), f"{self.name}/{run}: tomogram {uri}"
        spacing = TomogramUri.parse(uri).voxel_spacing
        part: NDArray[np.float32] = read_volume(entry, spacing, what, Volume.middle)[0].astype(np.float32)
        return part

    def open_volume(self, run: str, wanted: Segmentation | TomogramUri) -> Volume:
        """A tomogram or a segmentation as it is stored, to be read part by part.

        Raises:
            TomoscoutError: it does not exist, or chunks of it are missing.
        """
        if isinstance(wanted, Segmentation):
            entry = self._segmentation(run, wanted)
        else:
            entry = self._copick.tomogram(run, str(wanted))
        return open_whole_volume(entry, wanted.voxel_spacing, f"{self.name}/{run}: {kind_of(wanted)} {wanted}")

    def folder_of(self, run: str, wanted: Segmentation | TomogramUri) -> Path | None:
        """The folder of a volume, None where it does not exist or is not on a local disk."""
        of_run = self._copick
        entry = of_run.tomograms(run).get(wanted) if isinstance(wanted, TomogramUri) else of_run.find(run, wanted)
        if entry is None:
            return None
        fs, path = storage_of(entry)
        return Path(path) if is_local(fs) else None

    def write_tomogram(self, run: str, uri: str, volume: NDArray[np.floating]) -> None:
        """Write a float32 tomogram (z, y, x), replacing an earlier one."""
        z, y, x = volume.shape
        with self.writing_tomogram(run, uri, (z, y, x), np.float32) as array:
            array[...] = volume

    @contextmanager
    def writing_tomogram(
        self, run: str, uri: str, shape: Shape, kind: DTypeLike, attributes: Mapping[str, Any] | None = None
    ) -> Iterator[Any]:
        """A context in which a tomogram is written part by part: an array of `shape` and dtype `kind` to assign to. At
        its end the tomogram replaces an earlier one; after an exception nothing changes. `attributes` as in
        `write_segmentation`."""
        found = TomogramUri.parse(uri)
        with new_volume(self._copick.new_tomogram(run, uri), shape, kind, found.voxel_spacing, attributes) as array:
            yield array
        self._copick.refresh(run, found)

    # Picks

    def pick_sources(self, run: str) -> list[Source]:
        """Every set of picks of a run."""
        return self._copick.pick_sources(run)

    def read_picks(self, run: str, source: Source) -> Picks:
        """The picks of one object, user and session. Empty where there are none."""
        entry = self._copick.find(run, source)
        return picks_of(self._points(entry, run, source) if entry else [], f"{self.name}/{run}: picks {source}")

    def find_picks(self, run: str, source: Source) -> PicksFound:
        """Number, digest and positions of a set of picks.

        Raises:
            TomoscoutError: its file cannot be used.
        """
        points, what = self._points(self._copick.find(run, source), run, source), f"{self.name}/{run}: picks {source}"
        try:
            return PicksFound(len(points), digest(points), places_of(points, what)[0])
        except ValueError:
            raise TomoscoutError(f"{what}: a value is NaN or infinite") from None

    def _points(self, entry: Any, run: str, source: Source) -> Points:
        owner = f"{self.name}/{run}"
        try:
            values = read_picks_file(entry, owner)
        except FileNotFoundError:
            raise TomoscoutError(f"{owner}: picks {source}: no file {entry.path}") from None
        return points_of(values, f"{owner}: picks {source}", f"{owner}: {getattr(entry, 'path', source)}")

    def write_picks(self, run: str, source: Source, picks: Picks, inputs: str = OF_OTHERS) -> None:
        """Write picks, replacing earlier ones of the same object, user and session; an empty file if there are none.
        `inputs`: the digest of what they were made from, stored with them."""
        if source.name not in self.objects:
            raise TomoscoutError(f"project {self.name} ({self.config}): no pickable object '{source.name}'")
        points = to_points(picks)
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
        write_text(self._copick.place(run, source), json.dumps(values, indent=4, allow_nan=False))
        self._copick.refresh(run, source)

    # Segmentations

    def segmentations(self, run: str) -> list[Segmentation]:
        """Every binary and multilabel segmentation of a run."""
        return [found for found, _ in self._copick.segmentations(run)]

    def digest_segmentation(self, run: str, wanted: Segmentation) -> str:
        """A digest that changes with the content of a segmentation."""
        entry = self._segmentation(run, wanted)
        try:
            return digest_content(entry.fs, entry.path)
        except OSError as error:
            raise TomoscoutError(f"{self.name}/{run}: segmentation {wanted}: {cut(str(error))}") from None

    def _segmentation(self, run: str, wanted: Segmentation) -> Any:
        entry = self._copick.find(run, wanted)
        if entry is None:
            have = ", ".join(map(str, self.segmentations(run))) or "none"
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
        return read_volume(entry, wanted.voxel_spacing, what, region, allow_missing_chunks=allow_missing_chunks)

    def open_mask(
        self, run: str, wanted: Segmentation, voxel_spacing: float, *, allow_missing_chunks: bool = False
    ) -> OpenMask:
        """A segmentation as a mask that is read part by part, on the grid of tomograms of a voxel spacing (Å).

        Raises:
            TomoscoutError: no such segmentation, or missing chunks.
        """
        entry, what = self._segmentation(run, wanted), f"{self.name}/{run}: segmentation {wanted}"
        own = wanted.voxel_spacing
        volume = open_whole_volume(entry, own, what, allow_missing_chunks=allow_missing_chunks)
        return OpenMask(volume, what, own, voxel_spacing)

    def write_segmentation(
        self, run: str, wanted: Segmentation, labels: NDArray[np.integer], attributes: Mapping[str, Any]
    ) -> str:
        """Write labels (z, y, x) unchanged, replacing an earlier segmentation in one step (atomically for its readers);
        `attributes`, "inputs" among them, are stored with them under "tomoscout". Returns the digest of the data."""
        return self._write(run, wanted, labels, attributes)

    @contextmanager
    def writing(
        self,
        run: str,
        wanted: Segmentation | Probabilities,
        shape: Sequence[int],
        kind: DTypeLike,
        attributes: Mapping[str, Any],
    ) -> Iterator[Any]:
        """A context in which a volume is written part by part: an array of `shape`, (z, y, x) or (class, z, y, x), and
        dtype `kind` to assign to. At its end the volume replaces an earlier one in one step; after an exception
        nothing changes. `attributes` as in `write_segmentation`."""
        if isinstance(wanted, Probabilities):
            spacing = TomogramUri.parse(wanted.tomogram).voxel_spacing
        else:
            spacing = wanted.voxel_spacing
        with new_volume(self._copick.place(run, wanted), shape, kind, spacing, attributes) as array:
            yield array
        self._copick.refresh(run, wanted)

    def _write(
        self,
        run: str,
        wanted: Segmentation | Probabilities,
        volume: NDArray[Any],
        attributes: Mapping[str, Any],
    ) -> str:
        with self.writing(run, wanted, volume.shape, volume.dtype, attributes) as array:
            array[...] = volume
        return self.digest_written(run, wanted)

    # Probabilities: a feature volume of the tomogram, classes first

    def write_probabilities(
        self, run: str, wanted: Probabilities, probabilities: NDArray[np.uint8], attributes: Mapping[str, Any]
    ) -> str:
        """Write quantised class probabilities (class, z, y, x); `attributes` as in `write_segmentation`. Returns their
        digest."""
        return self._write(run, wanted, probabilities, attributes)

    def read_probabilities(self, run: str, wanted: Probabilities, label: int | None = None) -> NDArray[np.uint8]:
        """Quantised class probabilities (class, z, y, x), or those (z, y, x) of the class with a label alone."""
        entry = self._copick.find(run, wanted)
        if entry is None:
            raise TomoscoutError(f"{self.name}/{run}: no probabilities {wanted}; run the segment stage")
        spacing, what = TomogramUri.parse(wanted.tomogram).voxel_spacing, f"{self.name}/{run}: probabilities {wanted}"
        region = () if label is None else (slice(label - 1, label),)
        found: NDArray[np.uint8] = read_volume(entry, spacing, what, region, channels=1)
        if label is not None and not len(found):
            raise TomoscoutError(f"{what}: no class {label}; run the segment stage again")
        return found if label is None else found.reshape(found.shape[1:])
