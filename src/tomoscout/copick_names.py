"""copick's projects on a file system, for which one name that copick cannot read is no reason to read nothing.

Copick takes every name in a run's folder apart and ends with an error at the first that has another form: an empty
folder `VoxelSpacing`, notes beside the picks. Here these are passed over and can be asked for.
"""

from __future__ import annotations

import re
from typing import Any

from copick.impl.filesystem import CopickRootFSSpec, CopickRunFSSpec, CopickVoxelSpacingFSSpec
from copick.models import CopickPicksFile, CopickRunMeta, CopickVoxelSpacingMeta


class TolerantRun(CopickRunFSSpec):  # type: ignore[misc]
    """A run. `passed_over`: names that are no voxel spacings or picks, as far as these have been asked for."""

    @property
    def passed_over(self) -> list[str]:
        self.picks, self.voxel_spacings  # noqa: B018 the lists are made when first asked for
        return sorted(self._passed_over)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._passed_over: set[str] = set()

    def _query_static_voxel_spacings(self) -> list[CopickVoxelSpacingFSSpec]:
        return [] if self.static_is_overlay else self._spacings_in(self.fs_static, self.static_path)

    def _query_overlay_voxel_spacings(self) -> list[CopickVoxelSpacingFSSpec]:
        return self._spacings_in(self.fs_overlay, self.overlay_path)

    def _query_static_picks(self) -> list[Any]:
        return [] if self.static_is_overlay else self._picks_in(self.fs_static, self.static_path, read_only=True)

    def _query_overlay_picks(self) -> list[Any]:
        return self._picks_in(self.fs_overlay, self.overlay_path, read_only=False)

    def _spacings_in(self, fs: Any, folder: str) -> list[CopickVoxelSpacingFSSpec]:
        names = self._matching(fs, folder, "VoxelSpacing*", r"VoxelSpacing(\d+(?:\.\d+)?)")
        sizes = dict.fromkeys(float(match[1]) for match in names if float(match[1]) > 0)
        return [CopickVoxelSpacingFSSpec(meta=CopickVoxelSpacingMeta(voxel_size=size), run=self) for size in sizes]

    def _picks_in(self, fs: Any, folder: str, *, read_only: bool) -> list[Any]:
        names = self._matching(fs, f"{folder}/Picks", "*.json", r"([^_]+)_([^_]+)_([^_]+)\.json")
        return [
            self._picks_factory()(
                run=self,
                file=CopickPicksFile(user_id=match[1], session_id=match[2], pickable_object_name=match[3]),
                read_only=read_only,
            )
            for match in names
        ]

    def _matching(self, fs: Any, folder: str, names: str, form: str) -> list[re.Match[str]]:
        """The entries of a folder that have a form, sorted by name; others are noted as passed over."""
        found = []
        for path in sorted({path.rstrip("/") for path in fs.glob(f"{folder}/{names}")}):
            name = path.rpartition("/")[2]
            match = re.fullmatch(form, name)
            if match:
                found.append(match)
            elif not name.startswith("."):
                self._passed_over.add(path)
        return found


class TolerantRoot(CopickRootFSSpec):  # type: ignore[misc]
    """A project whose runs are tolerant."""

    def _run_factory(self) -> tuple[type[TolerantRun], type[CopickRunMeta]]:
        return TolerantRun, CopickRunMeta

    def query(self) -> list[Any]:
        return [TolerantRun(root=self, meta=CopickRunMeta(name=run.name)) for run in super().query()]
