"""The workflow as users run it: dry runs of every target, what a change makes again, and the chain itself."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import yaml

from support.snakemake_session import CONFIG, OTHER_TARGETS, ROOT, TARGETS, Session
from tomoscout.data.picks import Picks
from tomoscout.options.names import Source

NO_TRACEBACK = "Traceback (most recent call last)"

pytestmark = pytest.mark.workflow


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A session in which there is the phantom alone."""
    session = Session(tmp_path_factory.mktemp("phantom"))
    session.snakemake("phantom")
    return session


@pytest.fixture(scope="module")
def session(phantom: Session, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A session in which the whole chain has run."""
    session = copy_of(phantom, tmp_path_factory.mktemp("workflow"))
    session.snakemake()
    return session


def copy_of(phantom: Session, folder: Path) -> Session:
    """A session with a copy of the phantom, and no results."""
    made = Session(folder)
    copy = made.folder / "results/phantom"
    shutil.copytree(phantom.folder / "results/phantom", copy)
    config = copy / "copick.json"
    config.write_text(config.read_text().replace(str(phantom.folder), str(made.folder)))
    return made


BATCH = {"runs_per_job": 4, "tracking": {"enabled": False}}


@pytest.fixture(scope="module")
def batch(phantom: Session, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A session in which the whole chain has run, with all runs in one batch."""
    made = copy_of(phantom, tmp_path_factory.mktemp("batch"))
    made.base = CONFIG | BATCH
    made.configure({})
    made.snakemake()
    return made


@contextmanager
def kept(path: Path) -> Iterator[None]:
    """Put a file back as it was, its time included."""
    content, facts = path.read_bytes(), path.stat()
    try:
        yield
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@contextmanager
def configured(session: Session, changes: dict) -> Iterator[None]:
    """Change the configuration for a while."""
    session.configure(changes)
    try:
        yield
    finally:
        session.configure({})


def picks_file(session: Session, run: str, name: str) -> Path:
    return session.folder / f"results/phantom/ExperimentRuns/{run}/Picks/phantom_0_{name}.json"


def move_a_pick(path: Path) -> None:
    content = json.loads(path.read_text())
    content["points"][0]["location"]["x"] += 20.0
    path.write_text(json.dumps(content))


def test_the_chain_ends_in_scored_picks_and_a_report(session: Session) -> None:
    results = session.folder / "results"
    assert (results / "report/tiny.html").stat().st_size > 1000
    scores = json.loads((results / "evaluate/tiny/scores.json").read_text())
    assert list(scores["runs_scored"] if "runs_scored" in scores else scores["runs"])
    project = session.project()
    for run in project.run_names():
        found = [source.name for source in project.pick_sources(run) if source.user == "tomoscout"]
        assert len(found) == 5
    verified = subprocess.run(
        [sys.executable, "-m", "tomoscout", "verify", "--config", "results/config.json"],
        cwd=session.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    # A target, labels, probabilities and five sets of picks per run, and the weights.
    assert verified.stdout == "33 digests compared, 0 problems\n"


def test_a_second_run_has_nothing_to_do(session: Session) -> None:
    assert session.would_run() == []


def test_an_object_named_alone_is_not_confused_with_its_predictions(session: Session) -> None:
    with configured(session, {"targets": {"picks": ["apo-ferritin", "hemoglobin"]}}):
        assert "train_model" in session.would_run()


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_can_be_asked_for_alone(tmp_path: Path, session: Session, target: str) -> None:
    fresh = Session(tmp_path)
    fresh.configure({"projects": {"phantom": str(session.folder / "results/phantom/copick.json")}})
    jobs = {job.split()[0] for job in fresh.would_run(target)}
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


def test_changed_picks_of_a_training_run(session: Session) -> None:
    path = picks_file(session, "phantom-000", "apo-ferritin")
    with kept(path):
        move_a_pick(path)
        jobs = session.would_run()
    batch = session.batch_of("phantom-000")
    assert [job for job in jobs if job.startswith(("targets_runs", "overlays_runs"))] == [
        f"overlays_runs {batch}",
        f"targets_runs {batch}",
    ]
    # What follows: the training and all that comes of the model, but not the split.
    assert "train_model" in jobs
    assert "split_runs" not in jobs
    assert session.would_run() == []


def test_changed_picks_of_a_test_run_do_not_train_again(session: Session) -> None:
    path = picks_file(session, "phantom-003", "apo-ferritin")
    with kept(path):
        move_a_pick(path)
        jobs = session.would_run()
    batch = session.batch_of("phantom-003")
    assert jobs == ["evaluate_picks", f"overlays_runs {batch}", "report_page", f"targets_runs {batch}"]


def test_changed_picks_of_a_test_run_in_a_batch_with_all_others(batch: Session) -> None:
    with kept(picks_file(batch, "phantom-003", "apo-ferritin")):
        move_a_pick(picks_file(batch, "phantom-003", "apo-ferritin"))
        after_test_run = {job.split()[0] for job in batch.would_run()}
        assert after_test_run == {"targets_runs", "overlays_runs", "evaluate_picks", "report_page"}
        # What is changed beside it is seen all the same.
        with configured(batch, BATCH | {"localize": {"smoothing": 0.3}}):
            assert {job.split()[0] for job in batch.would_run()} == after_test_run | {"localize_runs"}
        with configured(batch, BATCH | {"train": {"steps": 9}}):
            assert "train_model" in batch.would_run()
        with kept(picks_file(batch, "phantom-002", "apo-ferritin")):
            move_a_pick(picks_file(batch, "phantom-002", "apo-ferritin"))
            assert {"train_model", "segment_runs 0000", "evaluate_picks"} <= set(batch.would_run())
        # The real run does what the dry run said.
        weights = batch.folder / "results/models/tiny/weights.safetensors"
        made = weights.stat().st_mtime_ns
        batch.snakemake()
        assert weights.stat().st_mtime_ns == made
        assert batch.would_run() == []
    batch.snakemake()


def test_an_added_run_leaves_the_others_alone(session: Session) -> None:
    project = session.project()
    project.write_tomogram("phantom-new", "wbp@10.0", project.read_tomogram("phantom-000", "wbp@10.0"))
    folder = session.folder / "results/phantom/ExperimentRuns/phantom-new"
    try:
        jobs = session.would_run()
        batch = session.batch_of("phantom-new")
        # Without picks of its own it is only segmented; the split file says why it is left out.
        assert jobs == sorted([f"segment_runs {batch}", f"localize_runs {batch}", "split_runs", "report_page"])
        project.write_picks("phantom-new", Source("apo-ferritin", "phantom", "0"), Picks.at([[100.0, 100.0, 100.0]]))
        jobs = session.would_run()
        assert [job for job in jobs if job.startswith(("targets", "overlays"))] == [
            f"overlays_runs {batch}",
            f"targets_runs {batch}",
        ]
        assert "train_model" not in jobs
    finally:
        subprocess.run(["rm", "-r", str(folder)], check=True)
    assert "segment_runs" not in " ".join(session.would_run())


def test_a_changed_comment_in_the_package_reruns_nothing(session: Session) -> None:
    path = ROOT / "src/tomoscout/learning/trainer.py"
    with kept(path):
        path.write_bytes(path.read_bytes() + b"# a remark\n")
        assert session.would_run() == []


def test_a_changed_radius_scale_reruns_from_the_targets_on(session: Session) -> None:
    with configured(session, {"targets": {"radius_scale": 0.7}}):
        jobs = {job.split()[0] for job in session.would_run()}
    assert jobs == {
        "targets_runs",
        "overlays_runs",
        "train_model",
        "segment_runs",
        "localize_runs",
        "evaluate_picks",
        "report_page",
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"localize": {"threshold": 0.3}}, {"localize_runs", "evaluate_picks", "report_page"}),
        ({"localize": {"smoothing": 0.3, "separation": 0.8}}, {"localize_runs", "evaluate_picks", "report_page"}),
        ({"evaluate": {"beta": 1.0, "distance": 0.8, "runs": "all"}}, {"evaluate_picks", "report_page"}),
        ({"report": {"title": "Another"}}, {"report_page"}),
        ({"segment": {"flips": 2}}, {"segment_runs", "localize_runs", "evaluate_picks", "report_page"}),
        ({"train": {"checkpoint_seconds": 1}, "runs_per_job": 3}, set()),
    ],
)
def test_a_changed_option_reruns_what_it_touches(session: Session, changes: dict, expected: set[str]) -> None:
    with configured(session, changes):
        assert {job.split()[0] for job in session.would_run()} == expected


def test_only_the_changed_run_of_a_batch_is_made_again(tmp_path: Path) -> None:
    session = Session(tmp_path)
    session.configure({"runs_per_job": 4})
    session.snakemake("phantom")
    session.snakemake("targets")
    manifests = sorted((session.folder / "results/targets/targets/phantom").glob("*.json"))
    before = {path.stem: path.stat().st_mtime_ns for path in manifests}
    assert len(before) == 4
    move_a_pick(picks_file(session, "phantom-002", "apo-ferritin"))
    session.snakemake("targets")
    after = {path.stem: path.stat().st_mtime_ns for path in manifests}
    assert [run for run in before if before[run] != after[run]] == ["phantom-002"]
    assert session.would_run("targets") == []


def copy_project(config: Path, folder: Path) -> str:
    """The same project in another folder, which its config names."""
    shutil.copytree(config.parent, folder)
    copied = folder / config.name
    copied.write_text(copied.read_text().replace(str(config.parent), str(folder)))
    return str(copied)


@pytest.mark.parametrize("example", sorted((ROOT / "config/examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_runs_dry(tmp_path: Path, session: Session, example: Path) -> None:
    fresh = Session(tmp_path)
    values = yaml.safe_load(example.read_text())
    source = session.folder / "results/phantom/copick.json"
    # A project of its own for every name: one under two is refused.
    values["projects"] = {name: copy_project(source, tmp_path / name) for name in values["projects"]}
    values["tomograms"] = ["wbp@10.0"]
    model = str(session.folder / "results/models/tiny")
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
    fresh.config.write_text(yaml.safe_dump(values))
    targets = [target for target in OTHER_TARGETS if f"snakemake {target}" in example.read_text()]
    models = values.get("segment", {}).get("models")
    made_by = {"explored": "trial", "folds": "train_model"}.get(
        str(models), "segment_runs" if models else "train_model"
    )
    jobs = fresh.would_run("all", *targets)
    assert any(job.startswith(made_by) for job in jobs)
    assert ("targets" in values) == any(job.startswith("targets_runs") for job in jobs)


def test_a_bad_configuration_ends_in_one_clear_line(session: Session) -> None:
    with configured(session, {"targets": {"radius_scal": 0.7}}):
        output = session.snakemake("--dry-run", check=False)
    assert "config: targets: unknown key 'radius_scal'; did you mean 'radius_scale'?" in output
    assert NO_TRACEBACK not in output


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("results/phantom/copick.json", "results/phantom/copick.json: not a copick config ("),
        ("logs/", "logs: File exists"),
        ("results/config.json/", "results/config.json: Is a directory"),
    ],
)
def test_what_cannot_be_read_ends_in_one_line(tmp_path: Path, phantom: Session, damage: str, message: str) -> None:
    """Bytes that are no text, a file where a folder is wanted, a folder where a file is wanted."""
    damaged = copy_of(phantom, tmp_path)
    damaged.snakemake("splits")
    path = damaged.folder / damage
    if damage == "results/config.json/":
        path.unlink()
        path.mkdir()
    elif damage == "logs/":
        shutil.rmtree(path)
        path.touch()
    else:
        path.write_bytes(path.read_bytes() + b"\xff")
    ended = damaged.start("targets")
    output = ended.communicate()[0]
    assert ended.returncode == 1
    assert output.splitlines()[-1].startswith(f"error: {message}")
    assert NO_TRACEBACK not in output and "InputFunctionException" not in output
    assert not list((damaged.folder / ".snakemake/locks").glob("*"))


def test_a_damaged_inventory_is_made_anew(tmp_path: Path, phantom: Session) -> None:
    damaged = copy_of(phantom, tmp_path)
    damaged.snakemake("splits")
    path = damaged.folder / "results/inventory.tsv"
    whole = path.read_bytes()
    path.write_bytes(whole + b"\xff")
    assert "results/inventory.tsv: a row cannot be read (" in damaged.snakemake("splits")
    assert path.read_bytes() == whole


def test_a_failed_job_ends_its_log_with_the_reason(session: Session) -> None:
    tomogram = session.folder / "results/phantom/ExperimentRuns/phantom-003/VoxelSpacing10.000/wbp.zarr/0/0/0/0"
    with configured(session, {"segment": {"flips": 2, "runs": ["phantom-003"]}}), kept(tomogram):
        tomogram.unlink()
        output = session.snakemake("segment", "--keep-going", check=False)
    assert "segment_runs" in output
    log = session.folder / f"logs/segment/{session.batch_of('phantom-003')}.log"
    last = log.read_text().splitlines()[-1]
    assert last.startswith("error: phantom/phantom-003: tomogram wbp@10.0: truncated: 0 of 1 chunks are there")
    session.snakemake()


def test_the_workflow_can_be_imported_by_another(tmp_path: Path, session: Session) -> None:
    config = CONFIG | {"projects": {"phantom": str(session.folder / "results/phantom/copick.json")}}
    (tmp_path / "Snakefile").write_text(
        f"""
module picking:
    snakefile: {str(ROOT / "workflow/Snakefile")!r}
    config: {config!r}
    pathvars:
        results="elsewhere"

use rule * from picking as picking_*

rule everything:
    input: rules.picking_all.input
    default_target: True
"""
    )
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "1", "--directory", str(tmp_path)]
    finished = subprocess.run(
        [*command, "--snakefile", str(tmp_path / "Snakefile")], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "rule picking_train_model:" in finished.stdout
    assert "elsewhere/models/tiny/model.yaml" in finished.stdout


def test_two_modules_have_their_own_configuration_and_inventory(tmp_path: Path, phantom: Session) -> None:
    work = copy_of(phantom, tmp_path).folder
    config = CONFIG | {"projects": {"phantom": str(work / "results/phantom/copick.json")}}
    base = work / "models/base"
    base.mkdir(parents=True)
    for file in "model.yaml", "weights.safetensors":
        (base / file).touch()
    configs = {
        "one": config | {"targets": {"picks": "phantom/0", "name": "one"}},
        "two": config
        | {
            "targets": {"picks": ["apo-ferritin:phantom/0"], "name": "two", "radius_scale": 0.5},
            "train": config["train"] | {"name": "small", "base": "models/base"},
        },
    }
    (work / "Snakefile").write_text(
        "".join(
            f"""
module {name}:
    snakefile: {str(ROOT / "workflow/Snakefile")!r}
    config: {config!r}
    prefix: "its {name}"

use rule * from {name} as {name}_*
"""
            for name, config in configs.items()
        )
        + """
rule made:
    input: rules.one_targets.input, rules.two_targets.input, rules.one_splits.input
    default_target: True

rule everything:
    input: rules.one_all.input, rules.two_all.input, rules.two_finetune.input
"""
    )
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--directory", str(work)]

    def snakemake(*arguments: str) -> str:
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        snakefile = ["--snakefile", str(work / "Snakefile")]
        finished = subprocess.run([*command, *arguments, *snakefile], capture_output=True, text=True, env=environment)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished.stdout + finished.stderr

    snakemake()
    for name, classes in ("one", 5), ("two", 1):
        results = work / f"its {name}/results"
        assert json.loads((results / "config.json").read_text())["targets"]["name"] == name
        assert (results / "inventory.tsv").exists()
        manifest = json.loads((results / f"targets/{name}/phantom/phantom-000.json").read_text())
        assert len(manifest["targets"][0]["classes"]) == classes
    # Nothing of either lies elsewhere.
    assert [path.name for path in (work / "results").iterdir()] == ["phantom"]
    assert "Nothing to be done" in snakemake("--dry-run")
    planned = snakemake("--dry-run", "everything")
    assert "input: its two/results/models/small/targets.made, models/base/model.yaml" in planned
    assert "input: its one/results/localize/tiny/batch-" in planned


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


# Stopped and started again

LONG = BATCH | {"train": {"steps": 150, "validate_every": 10, "checkpoint_seconds": 1}}


def killed_in_training(
    session: Session, kill: Callable[[subprocess.Popen[str]], None], *arguments: str
) -> subprocess.Popen[str]:
    """Start snakemake, wait for the training, end it."""
    running = session.start(*arguments)
    metrics = session.folder / "results/models/tiny/metrics.csv"
    while not metrics.exists():
        assert running.poll() is None, running.communicate()[0]
        time.sleep(0.05)
    kill(running)
    running.wait()
    return running


@pytest.mark.parametrize(
    ("number", "target"), [(signal.SIGINT, ["train"]), (signal.SIGKILL, [])], ids=["Ctrl-C of train", "SIGKILL of all"]
)
def test_the_same_command_goes_on(tmp_path: Path, phantom: Session, number: signal.Signals, target: list[str]) -> None:
    again = copy_of(phantom, tmp_path)
    again.configure(LONG)
    killed_in_training(again, lambda running: os.killpg(running.pid, number), *target)
    assert not (again.folder / "results/models/tiny/model.yaml").exists()
    locks = sorted((again.folder / ".snakemake/locks").glob("*.lock"))
    # A look changes nothing.
    assert "train_model" in again.would_run(*target)
    assert sorted((again.folder / ".snakemake/locks").glob("*.lock")) == locks
    again.snakemake(*target)
    assert (again.folder / "results/models/tiny/model.yaml").exists()
    assert again.would_run(*target) == []


def test_who_is_still_at_work_is_told_and_let_alone(tmp_path: Path, phantom: Session) -> None:
    again = copy_of(phantom, tmp_path)
    again.configure(LONG | {"train": {"steps": 10**6}})
    killed = killed_in_training(again, subprocess.Popen.kill, "train")
    locks = sorted((again.folder / ".snakemake/locks").glob("*.lock"))
    try:
        output = again.snakemake("train", check=False)
        assert re.search(r"^at work in this folder: tomoscout train \(process \d+ on \S+\)$", output, re.M)
        assert "Directory cannot be locked" in output
        assert sorted((again.folder / ".snakemake/locks").glob("*.lock")) == locks != []
    finally:
        os.killpg(killed.pid, signal.SIGKILL)
        killed.communicate()
    again.configure(LONG | {"train": {"steps": 4}})
    again.snakemake("train")


# Cross-validation, fine-tuning, models from elsewhere


FOLDS = {
    "runs_per_job": 4,
    "targets": {"picks": ["apo-ferritin", "hemoglobin"]},
    "split": {"folds": 2, "train": None, "validate": None},
    "train": {"steps": 2, "validate_every": 2},
    "tracking": {"enabled": False},
    "segment": {"models": "folds", "runs": ["phantom-003"]},
}


def with_changes(**changes: dict) -> dict:
    """`FOLDS`, with some sections changed."""
    return FOLDS | {name: {**FOLDS.get(name, {}), **options} for name, options in changes.items()}


def trainings(output: str) -> dict[str, str]:
    """The trainings that snakemake announces: what it says of each, by model."""
    blocks = re.split(r"\n\n|\n(?=\[)", output)
    found = {match[1]: block for block in blocks if (match := re.search(r"wildcards: model=(\S+)", block))}
    return {model: block for model, block in found.items() if "rule train_model:" in block}


@pytest.fixture(scope="module")
def folds(phantom: Session, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A session in which a cross-validation has run, and its models together."""
    made = copy_of(phantom, tmp_path_factory.mktemp("folds"))
    made.configure(FOLDS)
    announced = trainings(made.snakemake("cross_validate", "evaluate"))
    assert sorted(announced) == ["tiny-fold-0", "tiny-fold-1"]
    for model, block in announced.items():
        # Jobs that can run side by side: neither needs anything of the other.
        assert re.search(r"input: (.*)", block)[1] == f"results/models/{model}/targets.made"
    return made


def test_a_cross_validation_ends_in_models_and_a_table(folds: Session) -> None:
    results = folds.folder / "results"
    assert not (results / "models/tiny").exists()
    for fold in range(2):
        folder = results / f"models/tiny-fold-{fold}"
        assert yaml.safe_load((folder / "model.yaml").read_text())["name"] == f"tiny-fold-{fold}"
    with (results / "cross_validation/tiny.csv").open(newline="") as handle:
        rows = {row["object"]: row for row in csv.DictReader(handle)}
    assert list(rows) == ["all", "apo-ferritin", "hemoglobin"]
    for fold in range(2):
        found = json.loads((results / f"models/tiny-fold-{fold}/results.json").read_text())
        assert float(rows["all"][f"fold {fold}"]) == found["score"]
    assert folds.would_run("cross_validate", "evaluate") == []


def test_the_folds_serve_together_as_an_ensemble(folds: Session) -> None:
    results = folds.folder / "results"
    scores = json.loads((results / "evaluate/tiny-folds/scores.json").read_text())
    assert {row["run"] for row in scores["runs"]} == {"phantom/phantom-003"}
    project = folds.project()
    sessions = {source.session for source in project.pick_sources("phantom-003") if source.user == "tomoscout"}
    assert "tiny-folds" in sessions


def test_without_folds_there_is_no_cross_validation(session: Session) -> None:
    output = session.snakemake("--dry-run", "cross_validate", check=False)
    assert output.splitlines()[-1] == (
        "error: cross-validation needs split.folds (such as 5) or split.leave_one_out: true"
    )
    assert NO_TRACEBACK not in output


def test_models_from_elsewhere_train_nothing(tmp_path: Path, session: Session) -> None:
    fresh = Session(tmp_path)
    model = session.folder / "results/models/tiny"
    projects = {"phantom": str(session.folder / "results/phantom/copick.json")}
    fresh.configure({"projects": projects, "segment": {"models": [str(model)]}})
    jobs = {job.split()[0] for job in fresh.would_run()}
    assert jobs >= {"segment_runs", "localize_runs", "evaluate_picks", "report_page"}
    assert "train_model" not in jobs


def test_a_fine_tuning_follows_its_base(folds: Session) -> None:
    base = folds.folder / "results/models/tiny-fold-0"
    # Relative to the working directory, as any path in a configuration.
    changes = with_changes(train={"name": "tuned", "base": "results/models/tiny-fold-0"}, segment={"models": None})
    with configured(folds, changes):
        folds.snakemake("finetune")
        results = json.loads((folds.folder / "results/models/tuned/results.json").read_text())
        assert results["base_score"] == json.loads((base / "results.json").read_text())["score"]
        weights = base / "weights.safetensors"
        with kept(weights):
            weights.touch()
            assert folds.would_run("finetune") == []
            weights.write_bytes(weights.read_bytes()[::-1])
            assert folds.would_run("finetune") == ["train_model"]


def test_a_fine_tuning_needs_a_base(folds: Session) -> None:
    output = folds.snakemake("--dry-run", "finetune", check=False)
    assert "fine-tuning needs train.base: a model folder, or octopi's model_config.yaml" in output
    assert NO_TRACEBACK not in output


def test_told_to_stop_a_training_writes_its_checkpoint(folds: Session) -> None:
    """The signal goes to all processes of the job at once, as a batch system sends it, or Ctrl-C in a terminal."""
    endless = {"name": "stopped", "steps": 10**6, "checkpoint_seconds": 10**6}
    with configured(folds, with_changes(train=endless, segment={"models": None})):
        running = folds.start("train", "--nolock")
        folder = folds.folder / "results/models/stopped"
        while not (folder / "metrics.csv").exists():
            try:
                running.wait(timeout=0.05)
            except subprocess.TimeoutExpired:
                continue
            pytest.fail(running.communicate()[0])
        os.killpg(running.pid, signal.SIGTERM)
        running.communicate()
    assert (folder / "checkpoint.pt").exists()
    last = (folds.folder / "logs/train/stopped.log").read_text().splitlines()[-1]
    assert last == "stopped; results/models/stopped/checkpoint.pt is written, the same command goes on from it"


# Tracking


def recorded(database: Path) -> tuple[list[tuple[str, str]], int]:
    """The runs in MLflow's database, with their states, and how many points of the loss there are."""
    with closing(sqlite3.connect(database)) as connection:
        runs = connection.execute("SELECT name, status FROM runs").fetchall()
        [(points,)] = connection.execute("SELECT count(*) FROM metrics WHERE key = 'loss'").fetchall()
    return runs, points


def test_a_training_is_recorded_and_recorded_again_if_that_is_lost(session: Session) -> None:
    database = session.folder / "results/mlflow.db"
    with (session.folder / "results/models/tiny/metrics.csv").open(newline="") as handle:
        losses = sum(bool(row["loss"]) for row in csv.DictReader(handle))
    assert recorded(database) == ([("tiny", "FINISHED")], losses)
    database.unlink()
    session.snakemake("track")
    assert recorded(database) == ([("tiny", "FINISHED")], losses)
    assert session.would_run("track") == []
