"""What each result depends on, as digests: the workflow's params and the manifests' inputs come from here.

A stage has an integer version, raised when its numbers change, so that a changed comment reruns nothing and a
changed method reruns what it touches.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from tomoscout.data.copick_config import read_objects
from tomoscout.data.inventory import RunRecord
from tomoscout.machine.files import digest
from tomoscout.networks import code_digest
from tomoscout.options.config import Config
from tomoscout.plan.classes import TargetClass, TargetPlan, ignored_classes
from tomoscout.plan.predictions import predicted_segmentation
from tomoscout.plan.splits import Fold

VERSIONS = {
    "overlays": 1,
    "train": 3,
    "import": 1,
    "segment": 2,
    "localize": 2,
    "evaluate": 2,
    "report": 1,
    "explore": 2,
}
"""Targets and splits have theirs beside the code that plans them."""


def training_fingerprint(
    config: Config,
    records: Iterable[RunRecord],
    plan: TargetPlan,
    fold: Fold,
    leave_out: Collection[str] = (),
) -> str:
    """What weights depend on: options, but those to `leave_out`, classes, the code of a network of the user, and the
    tomograms and targets of the runs that train and choose. What a fine-tuning starts from is not in it: for the
    workflow its files are inputs."""
    used, uris = {*fold.train, *fold.validate}, [*config.tomograms, config.segment_tomogram]
    without_effect = {"name", "device", "checkpoint_seconds", "memory_gb", "gpu_memory_gb"}
    ignored = {key: names for key in fold.train + fold.validate if (names := ignored_classes(config, plan, key))}
    return digest(
        {
            "version": VERSIONS["train"],
            "train": config.train.model_dump(mode="json", exclude={*without_effect, *leave_out}),
            "network_code": code_digest(config.train.network),
            "tomograms": uris,
            "classes": [entry.to_json() for entry in plan.classes],
            "train_runs": {key: plan.inputs[key] for key in fold.train},
            "validate_runs": {key: plan.inputs[key] for key in fold.validate},
            "contents": {
                record.key: [record.contents.get(uri) for uri in uris] for record in records if record.key in used
            },
            "ignored": ignored,
        }
    )


def chooses_thresholds(config: Config) -> bool:
    """Whether the thresholds of a model of octopi's, which has none, are chosen on the validation runs."""
    return config.learns and not isinstance(config.localize.threshold, float | int)


def import_fingerprint(config: Config, validation: Mapping[str, Sequence[str | None]]) -> str:
    """What a model folder made of octopi's files depends on besides these. `validation`: what the targets of the runs
    depend on that its thresholds are chosen on, and the content of their tomograms, by run."""
    objects = [
        [entry.name, entry.is_particle, entry.radius]
        for path in config.projects.values()
        for entry in read_objects(Path(path)).values()
    ]
    options = [config.voxel_spacing, config.targets.radius_scale, config.train.picking.model_dump(), config.train.beta]
    return digest([VERSIONS["import"], objects, options, dict(validation)])


def object_labels(config: Config) -> dict[str, dict[str, int | None]]:
    """Per project the labels of its objects, with which segmentations are written."""
    return {
        project: {name: entry.label for name, entry in read_objects(Path(path)).items()}
        for project, path in config.projects.items()
    }


def segment_fingerprint(config: Config, record: RunRecord, labels: Mapping[str, Mapping[str, int | None]]) -> str:
    """What probabilities and labels depend on besides the model. `labels`: as of `object_labels`."""
    uri = config.segment_tomogram
    options = config.segment.model_dump(exclude={"device", "keep_probabilities", "runs", "tomogram", "models"})
    names = str(predicted_segmentation(config))
    tomogram = [uri, record.tomograms.get(uri), record.contents.get(uri)]
    return digest([VERSIONS["segment"], tomogram, options, names, labels[record.project]])


def localize_fingerprint(config: Config) -> str:
    """What picks depend on besides the probabilities and the model."""
    return digest([VERSIONS["localize"], config.localize.model_dump(), config.session])


def evaluate_fingerprint(
    config: Config, classes: Iterable[TargetClass], records: Iterable[RunRecord], kind: str
) -> str:
    """What scores depend on besides the predicted picks."""
    classes = list(classes)
    references = {
        record.key: [[record.picks[s].digest for s in entry.sources if s in record.picks] for entry in classes]
        for record in records
    }
    options = [config.evaluate.model_dump(exclude={"runs"}), config.targets.unannotated]
    return digest([VERSIONS["evaluate"], options, kind, references, [entry.to_json() for entry in classes]])
