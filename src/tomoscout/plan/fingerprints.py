"""Fingerprints: digests of everything that a result depends on, used as params of the workflow and as inputs in
manifests.

They contain every option of a section that is not marked `LeftOut`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tomoscout.data.copick_config import read_objects
from tomoscout.data.inventory import RunRecord
from tomoscout.machine.files import digest, digest_file
from tomoscout.models.options import BASE_OPTIONS
from tomoscout.networks import code_digest
from tomoscout.plan.dataset import overview
from tomoscout.plan.exchange import exported_reads
from tomoscout.plan.extractions import chosen_picks, contents, foreign, reads_of, written_by
from tomoscout.plan.folds import Fold
from tomoscout.plan.localized import labelled_objects, labels_of
from tomoscout.plan.masks import mask_of
from tomoscout.plan.predictions import predicted_segmentation
from tomoscout.plan.scored import compared_with, compares_targets
from tomoscout.plan.splits import split_to_json
from tomoscout.plan.targets import ignored_classes

if TYPE_CHECKING:
    from tomoscout.plan.plan import Plan
    from tomoscout.tasks.instances.options import Cells


def of_targets(plan: Plan, batch: str) -> str:
    """Fingerprint of the targets of a batch; that of each run is in `plan.targets.inputs`."""
    return digest({record.key: plan.targets.inputs.get(record.key) for record in plan.batch(batch)})


def of_overlays(plan: Plan, batch: str) -> str:
    """Fingerprint of the pictures of the targets of a batch, without the targets."""
    contents = {record.key: record.contents for record in plan.batch(batch) if record.key in plan.targets.inputs}
    return digest([plan.version("overlays"), contents])


def of_split(plan: Plan, job: str = "") -> str:
    """Fingerprint of the split file."""
    return digest([plan.version("split"), split_to_json(plan.config.split, plan.split)])


def of_training(plan: Plan, model: str) -> str:
    """Fingerprint of the training of a model."""
    member = plan.member_of(model)
    return training_fingerprint(plan.plan_of(member), plan.runs_of(member))


def training_fingerprint(plan: Plan, fold: Fold, leave_out: Collection[str] = ()) -> str:
    """Fingerprint of the training of a fold: options except those in `leave_out`, classes, the code of a user's
    network, and the tomograms and targets of the training and validation runs. The base of a fine-tuning is not
    included: in the workflow its files are inputs of the rule."""
    config, inputs = plan.config, plan.targets.inputs
    used, uris = {*fold.train, *fold.validate}, [*config.tomograms, config.segment_tomogram]
    ignored = {
        key: names for key in fold.train + fold.validate if (names := ignored_classes(config, plan.targets, key))
    }
    return digest(
        {
            "version": plan.version("train"),
            "train": config.train.decisive(leave_out=leave_out),
            "network_code": code_digest(config.train.network),
            "tomograms": uris,
            "classes": [entry.to_json() for entry in plan.targets.classes],
            "train_runs": {key: inputs[key] for key in fold.train},
            "validate_runs": {key: inputs[key] for key in fold.validate},
            "contents": {
                record.key: [record.contents.get(uri) for uri in uris] for record in plan.records if record.key in used
            },
            "ignored": ignored,
        }
    )


def of_pretraining(plan: Plan, model: str = "") -> str:
    """Fingerprint of the training on phantoms."""
    options, train = plan.config.pretrain, plan.config.train
    # The job tells of a map that is not there.
    files = {name: Path(path) for name, path in options.phantom.maps.items()}
    maps = {name: digest_file(path) if path.is_file() else None for name, path in files.items()}
    return digest(
        {
            "version": [plan.version("pretrain"), plan.version("phantom"), plan.version("train")],
            "pretrain": options.decisive(),
            "maps": maps,
            "train": train.decisive(leave_out=BASE_OPTIONS),
            "network_code": code_digest(train.network),
            "voxel_spacing": plan.config.voxel_spacing,
            "classes": [[entry.name, entry.target_radius] for entry in plan.targets.classes if entry.is_particle],
        }
    )


def training_targets(plan: Plan, fold: Fold) -> str:
    """Digest of the inputs of the targets of the runs that train or validate a model."""
    return digest({key: plan.targets.inputs[key] for key in fold.train + fold.validate})


def of_learning_curve(plan: Plan, job: str = "") -> str:
    """Fingerprint of a learning curve: of the trainings of all its models."""
    names = [member.name(plan.config.train.name) for member in plan.curve]
    return digest([plan.version("learning_curve"), {name: of_training(plan, name) for name in names}])


def of_import(plan: Plan, model: str = "") -> str:
    """Fingerprint of the import of an octopi model, without octopi's files. If its thresholds are chosen on the
    validation runs, it includes their targets and tomograms."""
    config = plan.config
    objects = [
        [entry.name, entry.is_particle, entry.radius]
        for path in config.projects.values()
        for entry in read_objects(Path(path)).values()
    ]
    options = [config.voxel_spacing, config.targets.radius_scale, config.train.picking.decisive(), config.train.beta]
    runs = plan.fold().validate if plan.config.chooses_thresholds else ()
    uri = config.segment_tomogram
    validation = {key: [plan.targets.inputs[key], plan.by_key[key].contents.get(uri)] for key in runs}
    return digest([plan.version("import_model"), objects, options, validation])


def of_segmentation(plan: Plan, batch: str) -> str:
    """Fingerprint of the probabilities and labels of a batch, without the model."""
    segmented = (record for record in plan.batch(batch) if record.key in plan.segmented_keys)
    return digest({record.key: segment_fingerprint(plan, record) for record in segmented})


def segment_fingerprint(plan: Plan, record: RunRecord) -> str:
    """Fingerprint of the probabilities and labels of a run, without the model."""
    config = plan.config
    uri = config.segment_tomogram
    names = str(predicted_segmentation(config))
    tomogram = [uri, record.tomograms.get(uri), record.contents.get(uri)]
    mask = str(mask_of(config, record, "segment"))
    masked = [config.segment.mask, mask, record.segmentations.get(mask)] if config.segment.mask else []
    labels = plan.object_labels[record.project]
    return digest([plan.version("segment"), tomogram, config.segment.decisive(), names, labels, *masked])


def of_picks(plan: Plan, batch: str) -> str:
    """Fingerprint of the picks of a batch, without the probabilities and the model."""
    localized = {record.key for record in plan.localized}
    return digest({r.key: picks_fingerprint(plan, r) for r in plan.batch(batch) if r.key in localized})


def picks_fingerprint(plan: Plan, record: RunRecord) -> str:
    """Fingerprint of the picks of a run, without the probabilities and the model."""
    config, options = plan.config, plan.config.localize
    read = [str(entry) for entry in (labels_of(config, record), mask_of(config, record, "localize")) if entry]
    contents = {name: record.segmentations[name] for name in read}
    objects = labelled_objects(config, record.project) if options.segmentation else {}
    return digest([plan.version("localize"), options.decisive(), config.session, contents, objects])


def of_extractions(plan: Plan, batch: str) -> str:
    """Fingerprint of what is extracted from a batch, without what other stages make for it."""
    return digest(
        {
            name: [
                extraction_fingerprint(plan, name),
                {
                    record.key: [contents(record, read) for read in foreign(plan.config, reads_of(plan.config, name))]
                    for record in records
                    if record.batch == int(batch)
                },
            ]
            for name, records in plan.extracted.items()
        }
    )


def extraction_fingerprint(plan: Plan, name: str) -> str:
    """Fingerprint of an extraction, without what it reads."""
    config, options = plan.config, plan.config.extract[name]
    picks = chosen_picks(config, name) if options.needs_picks else None
    read = [picks, config.voxel_spacing, plan.object_labels if options.label else None]
    return digest([plan.version("extract"), options.decisive(), written_by(config, name), read])


def of_scores(plan: Plan, job: str = "") -> str:
    """Fingerprint of scores, without the predicted picks."""
    config, scored = plan.config, plan.scored
    references = {
        record.key: [[record.picks[s].digest for s in entry.sources if s in record.picks] for entry in scored.classes]
        for record in scored.records
    }
    beside = foreign(config, compared_with(config))
    others = {record.key: [contents(record, read) for read in beside] for record in scored.records}
    volumes = {r.key: plan.targets.inputs.get(r.key) for r in scored.records} if compares_targets(config) else None
    options = [config.evaluate.decisive(), config.targets.unannotated]
    classes = [entry.to_json() for entry in scored.classes]
    return digest([plan.version("evaluate"), options, scored.kind, references, classes, others, volumes])


def of_export(plan: Plan, form: str) -> str:
    """Fingerprint of the picks that are written in a format, without what other stages make for it."""
    config, options = plan.config, plan.config.export
    uri = options.tomogram or config.segment_tomogram
    star = Path(options.tomograms_star) if options.tomograms_star else None
    reads = foreign(config, exported_reads(config))
    runs = {r.key: [r.tomograms.get(uri), [contents(r, read) for read in reads]] for r in plan.exported}
    # The job tells of a tomograms.star that is not there.
    sizes = digest_file(star) if star is not None and star.is_file() else None
    return digest([plan.version("export"), options.decisive(), uri, sizes, runs, config.session])


def of_imported_picks(plan: Plan, name: str) -> str:
    """Fingerprint of the picks that an import brings in, without the files."""
    entry = plan.config.import_picks[name]
    uri = entry.tomogram or plan.config.tomograms[0]
    return digest(
        [plan.version("import_picks"), entry.decisive(), uri, [[r.key, r.tomograms.get(uri)] for r in plan.records]]
    )


def cell_options(cells: Cells, stage: str) -> Any:
    """The options that a stage of instances of cells depends on, as plain values."""
    images = cells.decisive(leave_out=("division", "train", "explore", "segment", "export", "library"))
    options: dict[str, Any] = {
        "check_annotations": images,
        "divide_cells": [images, cells.division.decisive()],
        "train_cells": [images, cells.train.decisive(), code_digest(cells.train.network)],
        "evaluate_cells": [images, cells.train.base],
        "segment_cells": cells.segment.decisive(leave_out=("tomogram", "segmentation")),
        "export_cells": cells.export.decisive(),
    }
    return options[stage]


def annotated_tomograms(cells: Cells, records: Callable[[], Sequence[RunRecord]]) -> list[Any]:
    """The content of the annotated tomograms of each source and of their segmentations. `records`: returns all runs;
    not called where no tomogram is annotated."""
    found = []
    for source in cells.annotations.values():
        if source.segmentation is None or source.tomogram is None:
            continue
        # `name`, or `name:user/session`: the inventory has both and the voxel spacing.
        start = re.compile(re.escape(source.segmentation) + "[:@]")
        for record in records():
            chosen = {uri: value for uri, value in record.segmentations.items() if start.match(uri)}
            found.append([record.key, record.contents.get(source.tomogram), chosen])
    return found


def of_instances(plan: Plan, batch: str) -> str:
    """Fingerprint of the instances in the tomograms of a batch, without the model."""
    return digest({record.key: instances_fingerprint(plan, record) for record in plan.batch(batch)})


def instances_fingerprint(plan: Plan, record: RunRecord) -> str:
    """Fingerprint of the instances in the tomogram of a run, without the model."""
    options = plan.config.cells.segment
    content = record.contents.get(options.tomogram or "")
    return digest([plan.version("segment_instances"), options.tomogram, options.segmentation, content])


def of_report(plan: Plan, job: str = "") -> str:
    """Fingerprint of the report, without the other results."""
    config = plan.config
    runs = [entry.to_json() for entry in overview(plan)]
    return digest([plan.version("report"), config.report.decisive(), config.split.fold, runs])
