"""Training volumes: their preparation, and their storage on the device, in main memory or in memory-mapped files."""

from __future__ import annotations

import contextlib
import math
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tomoscout.learning.normalisation import STANDARDISE_VERSION, standardise
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import atomic_path, digest, digest_file, read_json, write_json
from tomoscout.machine.heap import return_freed_memory
from tomoscout.machine.messages import warn
from tomoscout.machine.progress import Progress
from tomoscout.networks.options import axes


@dataclass(frozen=True)
class LabelledVolume:
    """A prepared volume (channels, *space) and its target (*space), on the device, in main memory or in memory-mapped
    files; read-only. Losses ignore voxels with the label `ignore` (padding)."""

    name: str
    intensities: torch.Tensor
    labels: torch.Tensor
    ignore: int


def label_kind(largest: int) -> np.dtype[Any]:
    """The dtype of labels up to this one."""
    return np.dtype(np.uint8 if largest < 255 else np.int32)


def ignored_label(largest: int) -> int:
    """The label of voxels that losses ignore, where others go up to `largest`."""
    return int(np.iinfo(label_kind(largest)).max)


Tier = Literal["device", "memory", "files"]
"""Where training voxels are stored: on the device that trains, in main memory, or in memory-mapped files."""


@dataclass(frozen=True)
class Storage:
    """Where the voxels of a training are stored, and in which dtypes.

    Channels are standardised as they are read, unless the task has `prepared` them. Intensities are always float16:
    half the memory, with a rounding error far below the noise and no loss of speed (a CPU converts crops to float32 as
    fast as it copies them). So a training sees the same numbers wherever its voxels are stored. Labels are uint8 unless
    the largest of them is more than 254. `channels`: channels of the intensities. `volume`: what a volume is called in
    messages. `folder`: for memory-mapped files.
    """

    tier: Tier
    device: torch.device
    largest_label: int
    folder: Path
    channels: int = 1
    prepared: bool = False
    volume: str = "tomogram"

    @property
    def label_kind(self) -> np.dtype[Any]:
        """The dtype of the labels."""
        return label_kind(self.largest_label)

    @property
    def ignore(self) -> int:
        """The label of padding, the same in all volumes."""
        return ignored_label(self.largest_label)

    def size(self, shape: Sequence[int], patch: Sequence[int]) -> int:
        """Bytes that a volume of `shape` (*space) and its target take, padded to hold a crop."""
        voxels = math.prod(max(have, least) for have, least in zip(shape, patch, strict=True))
        return voxels * (2 * self.channels + self.label_kind.itemsize)


def labelled_volume(
    name: str,
    inputs: str,
    read: Callable[[], tuple[NDArray[np.float32], NDArray[np.integer]]],
    patch: Sequence[int],
    storage: Storage,
) -> LabelledVolume:
    """Prepare a volume and its target for training, padded at the far ends to hold at least one crop.

    Args:
        name: the name of the volume, unique among those of the training.
        inputs: the digest of what `read` returns. Files in `storage.folder` that were made from the same inputs are
            reused, and nothing is read.
        read: returns the volume, (*space) or (channels, *space), and its target (*space). It must keep no reference to
            either, so that at most two copies of the volume exist at any time.
        patch: voxels of a crop (*space).

    Raises:
        TomoscoutError: volume and target differ in shape, the target holds a label that is no class, or files cannot be
            written.
    """
    if storage.tier == "files":
        files = _VolumeFiles(name, inputs, tuple(patch), storage)
        return files.read() or files.write(*_prepare(name, read, patch, storage))
    intensities, labels = _prepare(name, read, patch, storage)
    where = storage.device if storage.tier == "device" else torch.device("cpu")
    return LabelledVolume(name, intensities.to(where), torch.from_numpy(labels).to(where), storage.ignore)


class VolumeSource(NamedTuple):
    """Where a training volume comes from: arguments of `labelled_volume`."""

    name: str
    inputs: str
    read: Callable[[], tuple[NDArray[np.float32], NDArray[np.integer]]]


def labelled_volumes(sources: Sequence[VolumeSource], patch: Sequence[int], storage: Storage) -> list[LabelledVolume]:
    """Prepare all volumes of a training, and remove the files of other volumes from the folder of the storage.

    Raises:
        TomoscoutError: see `labelled_volume`.
    """
    keep = [source.name for source in sources] if storage.tier == "files" else ()
    remove_volumes(storage.folder, keep)
    progress = Progress(len(sources))
    volumes = []
    for number, source in enumerate(sources, 1):
        volumes.append(labelled_volume(*source, patch, storage))
        if storage.tier == "files":
            return_freed_memory()
        progress.show(number, f"read {storage.volume} {number} of {len(sources)}")
    return volumes


def _prepare(
    name: str,
    read: Callable[[], tuple[NDArray[np.float32], NDArray[np.integer]]],
    patch: Sequence[int],
    storage: Storage,
) -> tuple[torch.Tensor, NDArray[Any]]:
    volume, labels = read()
    if volume.shape[-labels.ndim :] != labels.shape:
        raise TomoscoutError(
            f"{name}: {storage.volume} {volume.shape} and target {labels.shape} ({axes(labels.ndim)}) differ in shape"
        )
    lowest, highest = int(labels.min(initial=0)), int(labels.max(initial=0))
    if lowest < 0 or highest > storage.largest_label:
        wrong = lowest if lowest < 0 else highest
        raise TomoscoutError(f"{name}: the target holds label {wrong}, expected 0 to {storage.largest_label}")
    padding = [(0, max(0, size - have)) for size, have in zip(patch, labels.shape, strict=True)]
    channels = volume.reshape(-1, *labels.shape)
    prepared = [channel if storage.prepared else standardise(channel) for channel in channels]
    del volume, channels
    intensities = torch.stack([torch.from_numpy(channel).to(torch.float16) for channel in prepared])
    del prepared
    labels = np.require(labels, storage.label_kind, ["C_CONTIGUOUS", "WRITEABLE"])
    if any(after for _, after in padding):
        far_ends = [after for _, after in reversed(padding) for after in (0, after)]
        intensities = torch.nn.functional.pad(intensities, far_ends)
        labels = np.pad(labels, padding, constant_values=storage.ignore)
    return intensities, labels


@dataclass(frozen=True)
class _VolumeFiles:
    """A prepared volume in two `.npy` files and a manifest, which is written last and holds their digests."""

    name: str
    inputs: str
    patch: tuple[int, ...]
    storage: Storage

    @property
    def manifest(self) -> Path:
        return _manifest_path(self.storage.folder, self.name)

    @property
    def paths(self) -> tuple[Path, Path]:
        """Intensities and labels."""
        return self.manifest.with_suffix(".intensities.npy"), self.manifest.with_suffix(".labels.npy")

    @property
    def _made_from(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "inputs": self.inputs,
            "patch": list(self.patch),
            "classes": self.storage.largest_label,
            "standardise": STANDARDISE_VERSION,
        }

    def read(self) -> LabelledVolume | None:
        """The volume, if its files exist, are undamaged and were made from the same inputs."""
        if not self.manifest.exists():
            return None
        try:
            manifest = read_json(self.manifest)
            if {**self._made_from, "files": manifest["files"]} != manifest:
                return None
            damaged = manifest["files"] != [digest_file(path) for path in self.paths]
        except (TomoscoutError, OSError, KeyError, TypeError):
            damaged = True
        if damaged:
            warn(f"{self.manifest}: {self.name} is damaged there and made again")
            return None
        return self._open()

    def write(self, intensities: torch.Tensor, labels: NDArray[Any]) -> LabelledVolume:
        """Write the files and map them.

        Raises:
            TomoscoutError: they cannot be written; the disk may be full.
        """
        with _told_in_one_line(self.storage.folder, self.name):
            self.manifest.unlink(missing_ok=True)
            for path, values in zip(self.paths, (intensities.numpy(), labels), strict=True):
                with atomic_path(path) as temporary, temporary.open("wb") as handle:
                    np.lib.format.write_array(handle, values, allow_pickle=False)
            write_json(self.manifest, {**self._made_from, "files": [digest_file(path) for path in self.paths]})
        return self._open()

    def _open(self) -> LabelledVolume:
        intensities, labels = (np.load(path, mmap_mode="r", allow_pickle=False) for path in self.paths)
        with warnings.catch_warnings():
            # A writable mapping would need memory for all its pages on a system that does not overcommit memory.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return LabelledVolume(
                self.name,
                torch.from_numpy(intensities).view(-1, *labels.shape),
                torch.from_numpy(labels),
                self.storage.ignore,
            )


def _manifest_path(folder: Path, name: str) -> Path:
    # Names of runs may be too long for the name of a file, or hold characters that it must not contain.
    return folder / f"{digest(name)}.json"


@contextlib.contextmanager
def _told_in_one_line(folder: Path, name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TomoscoutError(
            f"{folder}: {name} cannot be written ({error.strerror or error}); free some space on that disk, or let "
            "train.memory_gb be larger"
        ) from None


def remove_volumes(folder: Path, keep: Collection[str] = ()) -> None:
    """Remove the memory-mapped files of a training from its folder, except those of the volumes named in `keep`. Called
    at the end for all files, and at the start for those of tomograms that are no longer trained on. Open volumes stay
    readable."""
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
        return
    stems = {_manifest_path(folder, name).stem for name in keep}
    for path in folder.glob("*"):
        if path.name.split(".")[0] not in stems:
            path.unlink(missing_ok=True)
