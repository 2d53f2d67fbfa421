"""A replacement of copick's listing of a project on a file system: tolerant of unexpected names, and faster.

Copick parses every name in a run's folder and raises an error at the first that it cannot parse, such as a folder
`VoxelSpacing` without a number, or notes beside the picks. Here such names are skipped and reported by `passed_over`.
Copick also globs ten patterns per run, each of which takes longer than listing a folder once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from copick.impl.filesystem import (
    CopickRootFSSpec,
    CopickRunFSSpec,
    CopickSegmentationFSSpec,
    CopickTomogramFSSpec,
    CopickVoxelSpacingFSSpec,
)
from copick.models import (
    CopickPicksFile,
    CopickRunMeta,
    CopickSegmentationMeta,
    CopickTomogramMeta,
    CopickVoxelSpacingMeta,
)
from copick.util.segmentation import parse_segmentation_store_name


def _names(fs: Any, folder: str) -> list[str]:
    """The names in a folder, sorted, without hidden ones; none where there is no such folder."""
    try:
        paths = fs.ls(folder, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    names = sorted(path.rstrip("/").rpartition("/")[2] for path in paths)
    return [name for name in names if not name.startswith(".")]


class TolerantVoxelSpacing(CopickVoxelSpacingFSSpec):  # type: ignore[misc]
    """The tomograms of a run at a voxel spacing."""

    def _query_static_tomograms(self) -> list[Any]:
        return [] if self.static_is_overlay else self._tomograms_in(self.fs_static, self.static_path, read_only=True)

    def _query_overlay_tomograms(self) -> list[Any]:
        return self._tomograms_in(self.fs_overlay, self.overlay_path, read_only=False)

    def _tomograms_in(self, fs: Any, folder: str, *, read_only: bool) -> list[Any]:
        names = (name.removesuffix(".zarr") for name in _names(fs, folder) if name.endswith(".zarr"))
        return [
            CopickTomogramFSSpec(voxel_spacing=self, meta=CopickTomogramMeta(tomo_type=name), read_only=read_only)
            for name in names
            if "features" not in name
        ]


class TolerantRun(CopickRunFSSpec):  # type: ignore[misc]
    """A run. `passed_over`: names of files and folders that are neither voxel spacings nor picks."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._passed_over: set[str] = set()

    @property
    def passed_over(self) -> list[str]:
        self.picks, self.voxel_spacings  # noqa: B018 the lists are made when first asked for
        return sorted(self._passed_over)

    def _voxel_spacing_factory(self) -> tuple[type[TolerantVoxelSpacing], type[CopickVoxelSpacingMeta]]:
        return TolerantVoxelSpacing, CopickVoxelSpacingMeta

    def _query_static_voxel_spacings(self) -> list[Any]:
        return [] if self.static_is_overlay else self._spacings_in(self.fs_static, self.static_path)

    def _query_overlay_voxel_spacings(self) -> list[Any]:
        return self._spacings_in(self.fs_overlay, self.overlay_path)

    def _query_static_picks(self) -> list[Any]:
        return [] if self.static_is_overlay else self._picks_in(self.fs_static, self.static_path, read_only=True)

    def _query_overlay_picks(self) -> list[Any]:
        return self._picks_in(self.fs_overlay, self.overlay_path, read_only=False)

    def _query_static_segmentations(self) -> list[Any]:
        if self.static_is_overlay:
            return []
        return list(self._segmentations_in(self.fs_static, self.static_path, read_only=True))

    def _query_overlay_segmentations(self) -> list[Any]:
        return list(self._segmentations_in(self.fs_overlay, self.overlay_path, read_only=False))

    def _spacings_in(self, fs: Any, folder: str) -> list[Any]:
        names = [name for name in _names(fs, folder) if name.startswith("VoxelSpacing")]
        found = self._matching(folder, names, r"VoxelSpacing(\d+(?:\.\d+)?)")
        sizes = dict.fromkeys(float(match[1]) for match in found if float(match[1]) > 0)
        return [TolerantVoxelSpacing(meta=CopickVoxelSpacingMeta(voxel_size=size), run=self) for size in sizes]

    def _picks_in(self, fs: Any, folder: str, *, read_only: bool) -> list[Any]:
        names = [name for name in _names(fs, f"{folder}/Picks") if name.endswith(".json")]
        return [
            self._picks_factory()(
                run=self,
                file=CopickPicksFile(user_id=match[1], session_id=match[2], pickable_object_name=match[3]),
                read_only=read_only,
            )
            for match in self._matching(f"{folder}/Picks", names, r"([^_]+)_([^_]+)_([^_]+)\.json")
        ]

    def _segmentations_in(self, fs: Any, folder: str, *, read_only: bool) -> Iterator[Any]:
        """The binary and multilabel segmentations; those of other kinds lie in other folders."""
        for name in _names(fs, f"{folder}/Segmentations"):
            fields = parse_segmentation_store_name(name) if name.endswith(".zarr") else None
            if fields:
                yield CopickSegmentationFSSpec(run=self, meta=CopickSegmentationMeta(**fields), read_only=read_only)

    def _matching(self, folder: str, names: list[str], form: str) -> list[re.Match[str]]:
        """The names that match `form`; others are noted as passed over."""
        matches = [(name, re.fullmatch(form, name)) for name in names]
        self._passed_over |= {f"{folder}/{name}" for name, match in matches if not match}
        return [match for _, match in matches if match]


class TolerantRoot(CopickRootFSSpec):  # type: ignore[misc]
    """A project whose runs are tolerant."""

    def _run_factory(self) -> tuple[type[TolerantRun], type[CopickRunMeta]]:
        return TolerantRun, CopickRunMeta

    def query(self) -> list[Any]:
        return [TolerantRun(root=self, meta=CopickRunMeta(name=run.name)) for run in super().query()]
