"""The extraction stage: particles chosen and oriented by their surroundings, into a session of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.inventory import RunRecord
from tomoscout.data.picks import Picks
from tomoscout.data.project import Project
from tomoscout.data.written import Segmentation, Written, nearest_segmentation
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import digest, digest_file, write_json, write_table
from tomoscout.machine.messages import say
from tomoscout.options.names import Source
from tomoscout.plan.extractions import chosen_picks, written_by
from tomoscout.plan.fingerprints import extraction_fingerprint
from tomoscout.plan.paths import batch_file
from tomoscout.plan.plan import Plan
from tomoscout.stages.batches import Batch
from tomoscout.tasks.picking.extraction.chosen import (
    Chosen,
    Pool,
    by_mask,
    by_neighbours,
    by_surface,
    midpoints,
    table_rows,
)
from tomoscout.tasks.picking.extraction.options import Extraction

WHOLE = 0.5
"""Of a segmentation that holds fractions, voxels from this value on belong to it."""


def run_extract(plan: Plan, batch: int, output: Path) -> None:
    """Make all extractions of a batch of runs, in the order in which they follow from each other. Each has a folder of
    its name beside `output`, with a manifest and a table for every run.

    Raises:
        TomoscoutError: a run lacks what an extraction reads, or the project has picks or a segmentation of the same
            name that these results have not made.
    """
    made = {}
    for name in plan.extracted:
        path = batch_file(output.parent / name, batch)
        _extract(plan, name, batch, path)
        made[name] = digest_file(path)
    write_json(output, {"batch": batch, "extractions": made})


def _extract(plan: Plan, name: str, batch: int, output: Path) -> None:
    """Make one extraction of a batch of runs; runs that are up to date are skipped."""
    work = Batch(plan.config, plan.extracted[name], batch, output)
    for record in work.records:
        with work.attempt(record):
            job = _Job(plan, name, work.project(record), record)
            inputs, written = job.inputs(), job.written()
            if work.is_done(record, inputs, written):
                continue
            work.claim(record, inputs, written, f"extract.{name}.session")
            table = work.manifest_path(record).with_suffix(".csv")
            manifest = job.label(inputs) if job.options.kind == "label" else job.picks(inputs, table)
            work.finish(record, inputs, written, {"kind": job.options.kind, **manifest})
            counts = ", ".join(f"{facts['count']} {what}" for what, facts in manifest["picks"].items())
            say(f"{record.key}: {name}: {counts or manifest.get('segmentation', {}).get('name', 'nothing')}")
    work.write()


class _Job:
    """An extraction in one run."""

    def __init__(self, plan: Plan, name: str, project: Project, record: RunRecord) -> None:
        self.options: Extraction = plan.config.extract[name]
        self._plan = plan
        self._name = name
        self._project = project
        self._record = record
        self._owner = written_by(plan.config, name)
        picks = chosen_picks(plan.config, name) if self.options.needs_picks else []
        self._sources = self._named(picks)
        self._partners = None if self.options.partners is None else self._named(self.options.partners)
        self._segmentation = self._found_segmentation()

    def _named(self, picks: str | list[str]) -> list[Source]:
        """The picks of the run that are named."""
        there = self._project.pick_sources(self._record.run)
        if isinstance(picks, str):
            return [source for source in there if f"{source.user}/{source.session}" == picks]
        return [source for source in map(Source.parse, dict.fromkeys(picks)) if source in there]

    def _found_segmentation(self) -> Segmentation | None:
        """The segmentation that is named: multilabel where a label is."""
        if self.options.segmentation is None:
            return None
        wanted, there = Source.parse(self.options.segmentation), self._project.segmentations(self._record.run)
        spacing, has_label = self._plan.config.voxel_spacing, self.options.label is not None
        found = nearest_segmentation(there, wanted, spacing, multilabel=has_label)
        if found is None:
            have = ", ".join(map(str, there)) or "none"
            raise TomoscoutError(f"{self._record.key}: no segmentation {wanted}; found: {have}")
        return found

    def inputs(self) -> str:
        """Digest of the options and of what is read."""
        run, project = self._record.run, self._project
        picks = {
            str(source): project.find_picks(run, source).digest for source in (*self._sources, *(self._partners or ()))
        }
        volume = self._segmentation
        content = None if volume is None else [str(volume), project.digest_segmentation(run, volume)]
        return digest([extraction_fingerprint(self._plan, self._name), picks, content])

    def written(self) -> list[Written]:
        """What is written into the project."""
        if self.options.kind == "label":
            assert self._segmentation is not None
            return [Segmentation(self._name_of_label(), *self._owner, self._segmentation.voxel_spacing, False)]
        return [Source(name, *self._owner) for name in self._objects()]

    def _objects(self) -> list[str]:
        if self.options.kind == "midpoints":
            return [self._name_of_middles()]
        return list(dict.fromkeys(source.name for source in self._sources))

    def _name_of_middles(self) -> str:
        names = sorted({source.name for source in self._sources})
        if self.options.object is None and len(names) != 1:
            raise TomoscoutError(
                f"extract.{self._name}.object: not given, and {self._record.key} has picks of {', '.join(names)}; name "
                "the object as which midpoints are written"
            )
        return self.options.object or names[0]

    def _name_of_label(self) -> str:
        options = self.options
        known = options.label if options.label in self._project.objects else None
        return options.object or known or Source.parse(options.segmentation or "").name

    def label(self, inputs: str) -> dict[str, Any]:
        """Write the label as a segmentation; returns its entry of the manifest."""
        [written] = self.written()
        assert isinstance(written, Segmentation)
        mask = self._mask()
        attributes = {"inputs": inputs, "made_from": str(self._segmentation)}
        content = self._project.write_segmentation(self._record.run, written, mask.astype(np.uint8), attributes)
        facts = {"name": str(written), "digest": content, "voxels": int(mask.sum())}
        return {"picks": {}, "segmentation": facts}

    def picks(self, inputs: str, table: Path) -> dict[str, Any]:
        """Write the picks that are chosen, and the table of all that were looked at; returns their entries of the
        manifest."""
        chosen = self._choose()
        names = np.array(chosen.objects, dtype=object)
        facts: dict[str, Any] = {}
        for written in self.written():
            assert isinstance(written, Source)
            kept = chosen.picks[chosen.kept & (names == written.name)]
            self._project.write_picks(self._record.run, written, kept, inputs)
            found = self._project.find_picks(self._record.run, written)
            facts[written.name] = {"source": str(written), "count": found.total, "digest": found.digest}
        columns, rows = table_rows(chosen)
        write_table(table, columns, rows)
        return {"picks": facts, "table": {"name": table.name, "rows": len(rows), "digest": digest_file(table)}}

    def _choose(self) -> Chosen:
        pool, options = self._pool(self._sources), self.options
        if options.kind in ("neighbours", "midpoints"):
            partners = None if self._partners is None else self._pool(self._partners)
            if options.kind == "neighbours":
                return by_neighbours(pool, partners, options)
            return midpoints(pool, partners, self._name_of_middles(), options)
        assert self._segmentation is not None
        spacing = self._segmentation.voxel_spacing
        if options.kind == "mask":
            return by_mask(pool, self._mask(), spacing)
        return by_surface(pool, self._mask(), spacing, options)

    def _pool(self, sources: list[Source]) -> Pool:
        found: Mapping[Source, Picks] = {
            source: self._project.read_picks(self._record.run, source) for source in sources
        }
        return Pool.of(found)

    def _mask(self) -> NDArray[np.bool_]:
        """The voxels of the segmentation, or of its label."""
        assert self._segmentation is not None
        labels = self._project.read_segmentation(self._record.run, self._segmentation)
        if self.options.label is not None:
            mask: NDArray[np.bool_] = labels == self._label_on_disk(self.options.label)
            return mask
        return labels >= WHOLE if labels.dtype.kind == "f" else labels != 0

    def _label_on_disk(self, label: str) -> int:
        known = {name: entry.label for name, entry in self._project.objects.items() if entry.label is not None}
        if label in known:
            return known[label]
        if label.isascii() and label.isdigit():
            return int(label)
        have = ", ".join(f"{name} {value}" for name, value in known.items()) or "none"
        raise TomoscoutError(
            f"extract.{self._name}.label: '{label}' is no number, and no object with a label in "
            f"{self._project.config}; labels: {have}"
        )
