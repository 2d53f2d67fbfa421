"""What Snakemake says that it would do: every target, every example; and what it cannot do, in one line."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from support.model import MODEL, random_network
from support.snakemake_session import (
    NO_TRACEBACK,
    OTHER_TARGETS,
    ROOT,
    TARGETS,
    Session,
    configured,
    copy_of,
    copy_project,
    kept,
)
from tomoscout.data.copick_config import read_objects
from tomoscout.models.folder import save_weights
from tomoscout.plan.classes import TargetClass

pytestmark = pytest.mark.workflow


@pytest.fixture(scope="module")
def session(phantom: Session, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A session in which there is the split and nothing else."""
    made = copy_of(phantom, tmp_path_factory.mktemp("dry"))
    made.snakemake("splits")
    return made


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A session in which the examples are planned one after another."""
    return Session(tmp_path_factory.mktemp("examples"))


@pytest.fixture(scope="module")
def model(phantom: Session, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a model that finds the phantom's objects."""
    folder = tmp_path_factory.mktemp("model") / "unet"
    objects = read_objects(phantom.folder / "results/phantom/copick.json").values()
    particles = [entry for entry in objects if entry.is_particle]
    classes = [
        TargetClass(entry.name, label, entry.radius, entry.radius, MODEL.classes[0].sources)
        for label, entry in enumerate(particles, 1)
    ]
    weights = save_weights(folder, random_network().state_dict())
    thresholds = {entry.name: 0.5 for entry in classes}
    replace(MODEL, weights_digest=weights, classes=tuple(classes), thresholds=thresholds).write(folder)
    return str(folder)


@pytest.mark.parametrize(
    "target",
    [
        pytest.param(target, marks=pytest.mark.long if target in ("all", "segment", "localize", "evaluate") else ())
        for target in TARGETS
    ],
)
def test_every_target_can_be_asked_for_alone(session: Session, target: str) -> None:
    split = session.folder / "results/splits/default.json"
    with kept(split):
        split.unlink()
        jobs = {job.split()[0] for job in session.would_run(target)}
    last = {
        "targets": "overlays_runs",
        "splits": "split_runs",
        "train": "train_model",
        "segment": "segment_runs",
        "localize": "localize_runs",
        "evaluate": "evaluate_picks",
        "report": "report_page",
        "all": "report_page",
    }[target]
    assert last in jobs
    assert ("train_model" in jobs) == (target not in ("targets", "splits"))


OF_CELLS = {ROOT / f"config/examples/{name}.yaml" for name in ("demo-cells", "vesicles")}
EXAMPLES = sorted(set((ROOT / "config/examples").glob("*.yaml")) - OF_CELLS)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_runs_dry(examples: Session, phantom: Session, model: str, example: Path) -> None:
    values = yaml.safe_load(example.read_text())
    source = phantom.folder / "results/phantom/copick.json"
    # A project of its own for every name: one under two is refused.
    for name in values["projects"]:
        folder = examples.folder / "projects" / name
        values["projects"][name] = str(folder / source.name) if folder.exists() else copy_project(source, folder)
    values["tomograms"] = ["wbp@10.0"]
    if "targets" in values:
        values["targets"]["picks"] = "phantom/0"
    else:
        values["segment"]["models"] = [model]
    if "base" in values.get("train", {}):
        values["train"]["base"] = model
    split = values.get("split", {})
    if "test" in split:
        split["test"] = ["phantom-003"]
    if "folds" in split:
        split["folds"] = 2
        # Of some objects there is none in the few runs of a fold.
        values["targets"]["picks"] = ["apo-ferritin", "hemoglobin"]
    examples.config.write_text(yaml.safe_dump(values))
    targets = [target for target in OTHER_TARGETS if f"snakemake {target}" in example.read_text()]
    models = values.get("segment", {}).get("models")
    made_by = {"explored": "trial", "folds": "train_model"}.get(
        str(models), "segment_runs" if models else "train_model"
    )
    jobs = examples.would_run("all", *targets)
    assert any(job.startswith(made_by) for job in jobs)
    assert ("targets" in values) == any(job.startswith("targets_runs") for job in jobs)


def test_a_bad_configuration_ends_in_one_clear_line(session: Session) -> None:
    with configured(session, {"targets": {"radius_scal": 0.7}}):
        output = session.snakemake("--dry-run", check=False)
    assert "config: targets: unknown key 'radius_scal'; did you mean 'radius_scale'?" in output
    assert NO_TRACEBACK not in output


@contextmanager
def in_the_place_of(path: Path) -> Iterator[None]:
    """Let something else stand where a file or folder is."""
    aside = path.with_name("kept-aside")
    path.rename(aside)
    try:
        yield
    finally:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        aside.rename(path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("results/phantom/copick.json", "results/phantom/copick.json: not a copick config ("),
        pytest.param("logs", "logs: File exists", marks=pytest.mark.long),
        pytest.param("results/config.json", "results/config.json: Is a directory", marks=pytest.mark.long),
    ],
)
def test_what_cannot_be_read_ends_in_one_line(session: Session, path: str, message: str) -> None:
    """Bytes that are no text, a file where a folder is wanted, a folder where a file is wanted."""
    damaged = session.folder / path
    whole = damaged.read_bytes() if path.endswith("copick.json") else None
    with in_the_place_of(damaged):
        if whole is not None:
            damaged.write_bytes(whole + b"\xff")
        elif path == "logs":
            damaged.touch()
        else:
            damaged.mkdir()
        ended = session.start("targets")
        output = ended.communicate()[0]
    assert ended.returncode == 1
    assert output.splitlines()[-1].startswith(f"error: {message}")
    assert NO_TRACEBACK not in output and "InputFunctionException" not in output
    assert not list((session.folder / ".snakemake/locks").glob("*"))


def test_a_damaged_inventory_is_made_anew(session: Session) -> None:
    path = session.folder / "results/inventory.tsv"
    whole = path.read_bytes()
    path.write_bytes(whole + b"\xff")
    assert "results/inventory.tsv: a row cannot be read (" in session.snakemake("splits")
    assert path.read_bytes() == whole


def test_without_folds_there_is_no_cross_validation(session: Session) -> None:
    output = session.snakemake("--dry-run", "cross_validate", check=False)
    assert output.splitlines()[-1] == (
        "error: cross-validation needs split.folds (such as 5) or split.leave_one_out: true"
    )
    assert NO_TRACEBACK not in output


def test_models_from_elsewhere_train_nothing(session: Session, model: str) -> None:
    with configured(session, {"segment": {"models": [model]}}):
        jobs = {job.split()[0] for job in session.would_run()}
    assert jobs >= {"segment_runs", "localize_runs", "evaluate_picks", "report_page"}
    assert "train_model" not in jobs


def test_a_fine_tuning_needs_a_base(session: Session) -> None:
    output = session.snakemake("--dry-run", "finetune", check=False)
    assert "fine-tuning needs train.base: a model folder, or octopi's model_config.yaml" in output
    assert NO_TRACEBACK not in output


@pytest.mark.long
def test_folders_may_have_any_name(tmp_path: Path) -> None:
    session = Session(tmp_path)
    names = {"results": "Anna's results", "logs": "my logs", "benchmarks": 'what "took" long'}
    session.configure({"pathvars": names, "projects": {"phantom": f"{names['results']}/phantom/copick.json"}})
    session.snakemake("phantom")
    session.snakemake("targets", "splits")
    assert (session.folder / "Anna's results/targets/targets/batch-0000.json").exists()
    assert sorted(path.name for path in (session.folder / "my logs").iterdir()) == [
        "overlays",
        "phantom.log",
        "split.log",
        "targets",
    ]
