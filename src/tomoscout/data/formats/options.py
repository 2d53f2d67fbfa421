"""Options of the exchange with other programs."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from tomoscout.data.formats import FormatName
from tomoscout.data.volume_formats import VolumeFormat
from tomoscout.options.names import Name, ObjectName, ProjectName, RunName, Source, TomogramUri
from tomoscout.options.sections import HOW_MANY, IN_ANOTHER_FORM, FilePath, Section
from tomoscout.plan.options import check_sources, read_sources

PixelSize = Annotated[float, Field(gt=0, le=10_000)]


class Export(Section):
    """Picks for other programs: `snakemake export` writes `results/export/{format}/`."""

    formats: Annotated[list[FormatName], Field(min_length=1), HOW_MANY] = ["relion5"]
    """Which formats: `relion5`, `relion4`, `relion3` (3.1) and `warp` STAR files, `dynamo` tables, `em` motive lists,
    `csv`, `czii` (the challenge's submission), `imod` models, `eman2` boxes, `ndjson` of the data portal."""
    picks: Annotated[str | list[str] | None, IN_ANOTHER_FORM] = None
    """Which picks: `user/session`, or a list of `name:user/session`. Default: those that `localize` makes."""
    objects: list[ObjectName] | None = None
    """These objects alone. Default: all."""
    runs: Annotated[list[RunName] | None, IN_ANOTHER_FORM] = None
    """These runs alone. Default: every run that is localised; with `picks`, every run that has such picks."""
    threshold: float | dict[ObjectName, float] | None = None
    """Picks with this score at least, for all objects or per object. Default: all picks."""
    per_run: bool = False
    """A file for each run, not one for all. Models of IMOD, boxes of EMAN2 and ndjson are always files of a run."""
    tomogram: Annotated[str | None, IN_ANOTHER_FORM] = None
    """The kind of tomogram whose pixels and size count, `algorithm@spacing`. Default: the one that is segmented."""
    tomograms_star: Annotated[FilePath | None, IN_ANOTHER_FORM] = None
    """RELION's tomograms.star, whose names of tomograms are those of the runs: unbinned sizes and the pixel size of the
    tilt series. Without it RELION 5's centre is half of the tomogram's own size, which is another where the binning
    does not divide the size."""
    pixel_size: PixelSize | None = None
    """Å per pixel where a format counts in pixels. Default: for `relion4` and `eman2`, which count in unbinned pixels,
    that of `tomograms_star`; else the voxel spacing of the tomogram."""
    origin: Literal[0, 1] = 1
    """The number of the first voxel in Dynamo tables and motive lists: 1 in MATLAB, 0 in some programs."""

    @field_validator("picks", mode="before")
    @classmethod
    def _read_picks(cls, value: Any) -> Any:
        return read_sources(cls, "picks", value)

    @field_validator("picks")
    @classmethod
    def _check_picks(cls, value: str | list[str] | None) -> str | list[str] | None:
        if value is None:
            return None
        for entry in check_sources(value) if isinstance(value, list) else ():
            if Source.parse(entry).user is None:
                raise ValueError(f"'{entry}' names no user and session; expected name:user/session")
        return check_sources(value)

    @field_validator("tomogram")
    @classmethod
    def _check_tomogram(cls, value: str | None) -> str | None:
        return value if value is None else str(TomogramUri.parse(value))


class ImportedPicks(Section):
    """Files with picks of another program, and what they do not say themselves."""

    files: Annotated[list[FilePath], Field(min_length=1)]
    """Files; `*` and `?` stand for any letters, as in `info/*_info.json`."""
    format: FormatName | None = None
    """Their format, as in `export.formats`. Default: by the ending; STAR files and tables are read by their columns."""
    object: ObjectName | dict[str, ObjectName] | None = None
    """The object that the picks are of; or the names in the files → objects, for files that name several. Default: as
    the files name them."""
    user: Name = "imported"
    """User of the picks written."""
    session: Name | None = None
    """Session of the picks written. Default: the name of the import."""
    run: RunName | None = None
    """The run that all picks are of. Default: as the files, or else their own names, say."""
    runs: FilePath | None = None
    """A table of two columns, separated by tabs or commas: name in the files, run. Default: the names are those of
    runs, without the endings that programs add (`.tomostar`, `.mrc`, `_10.00Apx`)."""
    indices: FilePath | None = None
    """A table of two columns, number of a tomogram and name, for Dynamo tables and motive lists. Default: the `.doc`
    beside each."""
    tomogram: str | None = None
    """The kind of tomogram that the picks were made in, `algorithm@spacing`. Default: the first of `tomograms`."""
    tomograms_star: FilePath | None = None
    """RELION's tomograms.star: see `export.tomograms_star`."""
    pixel_size: PixelSize | None = None
    """Å per pixel of coordinates in pixels, whatever the files say. Default: what they say, else the voxel spacing of
    the tomogram."""
    origin: Literal[0, 1] | None = None
    """The number of the first voxel in Dynamo tables and motive lists. Default: 1, as in MATLAB."""

    @field_validator("tomogram")
    @classmethod
    def _check_tomogram(cls, value: str | None) -> str | None:
        return value if value is None else str(TomogramUri.parse(value))


class ImportedTomograms(Section):
    """Files with tomograms of another program, and what they do not say themselves."""

    files: Annotated[list[FilePath], Field(min_length=1)]
    """Files (of OME-Zarr, folders); `*` and `?` stand for any letters, as in `tomograms/*.mrc`."""
    format: VolumeFormat | None = None
    """Their format: `mrc`, `tiff` or `ome-zarr`. Default: by the ending."""
    project: ProjectName | None = None
    """The project that they are brought into. Default: the only one."""
    algorithm: Name = "wbp"
    """The kind of tomogram: what stands before `@` in `tomograms`."""
    voxel_spacing: PixelSize | None = None
    """Å per voxel, whatever the files say. Default: what they say."""
    also_at: list[PixelSize] = []
    """Coarser voxel spacings in Å that the tomograms are also written at. What the coarser grid cannot hold is filtered
    out, and intensities stay as they are."""
    runs: FilePath | None = None
    """A table of two columns, separated by tabs or commas: name of a file, run. Default: runs are named as the files,
    without the endings that programs add (`.mrc`, `_10.00Apx`)."""


class Download(Section):
    """What is brought out of another copick project, such as one of the CryoET data portal. In its names `*` and `?`
    stand for any letters."""

    source: FilePath
    """The copick config of that project: for the portal what `copick config dataportal` writes."""
    project: ProjectName | None = None
    """The project that it is brought into. Default: the only one."""
    runs: list[RunName] | None = None
    """Which runs. Default: all."""
    tomograms: list[str] = []
    """Kinds of tomogram, as `wbp@10.0`. Of each only the finest resolution level is read."""
    picks: list[str] = []
    """Picks, as `ribosome:data-portal/*`. The project needs objects of these names."""
    segmentations: list[str] = []
    """Segmentations, as `membrane:data-portal/*@10.0`."""

    @model_validator(mode="after")
    def _check_anything(self) -> Self:
        if not (self.tomograms or self.picks or self.segmentations):
            raise ValueError("asks for nothing: give tomograms, picks or segmentations")
        return self
