"""Compare every manifest with the data it stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tomoscout.data.inventory import RunRecord
from tomoscout.data.project import Project
from tomoscout.data.written import Probabilities
from tomoscout.machine.errors import TomoscoutError, shown
from tomoscout.machine.files import digest_file, read_json
from tomoscout.models.folder import read_description
from tomoscout.options.config import Config
from tomoscout.options.names import Source

Comparison = tuple[str, str, str | None]
"""What is compared, the digest in the manifest, and the digest of the data, None where it is gone."""

Check = Callable[[Config, Project, RunRecord, dict[str, Any]], Iterator[Comparison]]


def verify(config: Config, records: Sequence[RunRecord], results: Path) -> tuple[int, list[str]]:
    """Check all manifests below `results`. Returns how many digests were compared, and a line per difference."""
    compared = 0
    problems = []
    by_key = {record.key: record for record in records}
    for stage, check in (("targets", _targets), ("segment", _segment), ("localize", _localize)):
        for path in sorted((results / stage).glob("*/*/*.json")):
            manifest = read_json(path)
            if (
                not isinstance(manifest, dict)
                or {"project", "run", "inputs"} - manifest.keys()
                or "picture" in manifest
            ):
                continue
            record = by_key.get(f"{manifest['project']}/{manifest['run']}")
            if record is None:
                problems.append(f"{path}: run {manifest['project']}/{manifest['run']} is no longer in the projects")
                continue
            project = Project(record.project, Path(config.projects[record.project]))
            try:
                for what, expected, found in check(config, project, record, manifest):
                    compared += 1
                    if found is None:
                        problems.append(f"{path}: {what} is gone")
                    elif expected != found:
                        problems.append(f"{path}: {what} has changed since it was written")
            except TomoscoutError as error:
                problems.append(f"{path}: {error}")
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                problems.append(f"{path}: not a manifest of the {stage} stage ({shown(error)})")
    for path in sorted((results / "models").glob("*/model.yaml")):
        compared += 1
        try:
            if read_description(path.parent).get("weights") != digest_file(path.with_name("weights.safetensors")):
                problems.append(f"{path}: weights.safetensors has changed since it was written")
        except (OSError, TomoscoutError) as error:
            problems.append(f"{path}: {error}")
    return compared, problems


def _targets(config: Config, project: Project, record: RunRecord, manifest: dict[str, Any]) -> Iterator[Comparison]:
    for target in manifest["targets"]:
        name = target["segmentation"]
        yield f"segmentation {name}", target["digest"], _digest_labels(project, record, name)


def _segment(config: Config, project: Project, record: RunRecord, manifest: dict[str, Any]) -> Iterator[Comparison]:
    labels, facts = manifest["segmentation"], manifest["probabilities"]
    yield f"segmentation {labels['name']}", labels["digest"], _digest_labels(project, record, labels["name"])
    if config.segment.keep_probabilities:
        found = project.digest_written(record.run, Probabilities(manifest["tomogram"], facts["name"]))
        yield f"probabilities {facts['name']}", facts["digest"], found


def _digest_labels(project: Project, record: RunRecord, name: str) -> str | None:
    # By the name in the manifest: manifests of targets and models that the configuration no longer names stay good.
    for entry in project.segmentations(record.run):
        if str(entry) == name:
            return project.digest_written(record.run, entry)
    return None


def _localize(config: Config, project: Project, record: RunRecord, manifest: dict[str, Any]) -> Iterator[Comparison]:
    there = project.pick_sources(record.run)
    for facts in manifest["picks"].values():
        source = Source.parse(facts["source"])
        found = project.find_picks(record.run, source).digest if source in there else None
        yield f"picks {source}", facts["digest"], found
