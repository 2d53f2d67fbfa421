"""Verification: compares the digests in all manifests with the data they describe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tomoscout.data.project import Project
from tomoscout.data.written import Probabilities
from tomoscout.machine.errors import TomoscoutError, shown
from tomoscout.machine.files import digest_file, read_json
from tomoscout.models.folder import read_description
from tomoscout.options.forms import read_entries
from tomoscout.options.names import Source
from tomoscout.plan.paths import Results
from tomoscout.plan.plan import Plan
from tomoscout.plan.stages import STAGES, Stage, Stated


def verify(plan: Plan) -> tuple[int, list[str]]:
    """Check all manifests of the results. Returns the number of digests compared, and a line per difference."""
    compared = 0
    problems: list[str] = []
    for name, stage in STAGES.items():
        for path in plan.results.manifests(name) if stage.written else ():
            manifest = read_json(path)
            if _is_manifest(manifest):
                compared += _verify_run(plan, name, stage, path, manifest, problems)
    return compared + _verify_exports(plan.results, problems) + _verify_models(plan.results, problems), problems


def _is_manifest(found: object) -> bool:
    """Whether the content of a file is the manifest of a run with data, not that of a picture."""
    return isinstance(found, dict) and found.keys() >= {"project", "run", "inputs"} and "picture" not in found


def _verify_run(plan: Plan, name: str, stage: Stage, path: Path, manifest: dict[str, Any], problems: list[str]) -> int:
    """Compare the digests in the manifest of a run with its data; returns the number of digests compared."""
    compared = 0
    record = plan.by_key.get(f"{manifest['project']}/{manifest['run']}")
    if record is None:
        problems.append(f"{path}: run {manifest['project']}/{manifest['run']} is no longer in the projects")
        return 0
    assert stage.written is not None
    project = Project(record.project, Path(plan.config.projects[record.project]))
    try:
        for stated in stage.written(plan, manifest):
            _compare(path, stated, _digest(project, record.run, path.parent, stated), problems)
            compared += 1
    except TomoscoutError as error:
        problems.append(f"{path}: {error}")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        problems.append(f"{path}: not a manifest of the {name} stage ({shown(error)})")
    return compared


def _digest(project: Project, run: str, folder: Path, stated: Stated) -> str | None:
    """The digest of the present content of an output; None if it does not exist."""
    match stated.kind:
        case "segmentation":
            # Found by the name in the manifest, so that outputs that the configuration no longer names are verified,
            # too.
            found = (entry for entry in project.segmentations(run) if str(entry) == stated.name)
            return next((project.digest_written(run, entry) for entry in found), None)
        case "probabilities":
            return project.digest_written(run, Probabilities(stated.tomogram, stated.name))
        case "picks":
            source = Source.parse(stated.name)
            return project.find_picks(run, source).digest if source in project.pick_sources(run) else None
        case _:
            return _digest_of_file(folder / stated.name)


def _digest_of_file(path: Path) -> str | None:
    return digest_file(path) if path.exists() else None


def _compare(path: Path, stated: Stated, found: str | None, problems: list[str]) -> None:
    """Compare what a manifest states of an output with the digest of its present content."""
    if found is None:
        problems.append(f"{path}: {stated.kind} {stated.name} is gone")
    elif stated.digest != found:
        problems.append(f"{path}: {stated.kind} {stated.name} has changed since it was written")


def _verify_exports(results: Results, problems: list[str]) -> int:
    """Compare the files of every export with the digests beside them; returns the number of files."""
    compared = 0
    for path in results.exports():
        try:
            files = read_entries(path, "the description of an export", files=dict[str, str])["files"]
        except TomoscoutError as error:
            problems.append(str(error))
            continue
        for name, digest in files.items():
            _compare(path, Stated("file", name, digest), _digest_of_file(path.parent / name), problems)
        compared += len(files)
    return compared


def _verify_models(results: Results, problems: list[str]) -> int:
    """Compare the weights of every model with the digest in its description; returns the number of models."""
    folders = results.trained_models()
    for folder in folders:
        path = folder / "model.yaml"
        try:
            if read_description(folder).get("weights") != digest_file(folder / "weights.safetensors"):
                problems.append(f"{path}: weights.safetensors has changed since it was written")
        except (OSError, TomoscoutError) as error:
            problems.append(f"{path}: {error}")
    return len(folders)
