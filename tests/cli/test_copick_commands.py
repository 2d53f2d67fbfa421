"""tomoscout in copick's own command line, as copick finds it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from copick.cli.cli import cli

from support.project import SHAPE, SmallProject, succeeded
from tomoscout.data.written import Segmentation
from tomoscout.machine.files import read_json
from tomoscout.options.names import Source

PLACES = [(100.0, 100.0, 100.0), (300.0, 200.0, 100.0)]
RUNS = ("TS_1", "TS_2", "TS_3")


@pytest.fixture
def project(small: SmallProject) -> SmallProject:
    for run in RUNS:
        small.add_run(run)
        small.add_picks(run, "ribosome:alice/1", PLACES)
    return small


def copick(project: SmallProject, *arguments: str | Path) -> Result:
    """A command of copick's for the project."""
    group, rest = list(arguments).index("tomoscout") + 1, [str(argument) for argument in arguments]
    if rest[0] == "process":
        group += 1
    options = ["-c", str(project.copick), "--tomogram", "wbp@10.0", "--output", str(project.folder / "results")]
    return CliRunner().invoke(cli, [*rest[:group], *options, *rest[group:]])


@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("training", "tomoscout"),
        ("inference", "tomoscout"),
        ("evaluation", "tomoscout"),
        ("process tomoscout", "localize"),
        ("process tomoscout", "extract"),
        ("convert", "tomoscout"),
    ],
)
def test_copick_lists_each_command_which_has_an_example(group: str, name: str) -> None:
    listed = succeeded(CliRunner().invoke(cli, [*group.split(), "--help"])).output
    assert f"\n  {name} " in listed
    described = succeeded(CliRunner().invoke(cli, [*group.split(), name, "--help"])).output
    assert f"\n  copick {group} {name} -c copick.json " in described


def test_copick_starts_without_what_is_slow() -> None:
    slow = ("matplotlib", "mlflow", "monai", "optuna", "snakemake", "torch")
    program = f"import sys, copick.cli.cli; print([name for name in {slow!r} if name in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout == "[]\n"


def test_a_network_is_trained_and_applied(project: SmallProject) -> None:
    more = project.folder / "more.yaml"
    more.write_text(
        "train: {patch: 16, batch_size: 2, device: cpu, steps: 9, network: {channels: [2, 4], strides: 2}}\n"
    )
    options = ("--options", more, "--set", "tracking.enabled=false", "--set", "split.ratios=[0.7, 0.3]")
    trained = copick(
        project, "training", "tomoscout", "--picks", "*:alice/1", "--steps", "2", "--name", "mine", *options
    )
    model = project.folder / "results/models/mine"
    assert succeeded(trained).stdout.splitlines()[-1] == str(model)
    used = read_json(model / "training.json")["options"]
    assert (used["steps"], used["batch_size"]) == (2, 2)

    options = ("--set", "localize.threshold=0.1", "--set", "segment.device=cpu", "--session-id", "found")
    succeeded(copick(project, "inference", "tomoscout", "--model", model, "-r", "TS_1", *options))
    found = project.project().read_picks("TS_1", Source("ribosome", "tomoscout", "found"))
    assert len(found) and (found.scores < 1).all()
    assert Source("ribosome", "tomoscout", "found") not in project.project().pick_sources("TS_2")


def test_picks_of_anybody_are_scored(project: SmallProject) -> None:
    project.add_picks("TS_1", "ribosome:octopi/1", [(110.0, 100.0, 100.0), (0.0, 0.0, 0.0)])
    project.add_picks("TS_1", "ferritin:octopi/1", PLACES)
    project.add_picks("TS_2", "ribosome:tomoscout/unet", PLACES)
    command = ("evaluation", "tomoscout", "-r", "TS_1", "-r", "TS_2", "--predicted", "octopi/1")
    both = ("--reference", "ribosome:alice/1", "--predicted", "*:tomoscout/unet", "--set", "evaluate.beta=1")
    printed = succeeded(copick(project, *command, *both)).stdout
    assert "tomoscout/unet:" in printed and "localisation error (Å)" in printed and "F1" in printed
    scores = read_json(project.folder / "results/evaluate/octopi-1/scores.json")
    assert (scores["picks"], scores["runs_scored"]) == ("octopi/1", ["demo/TS_1", "demo/TS_2"])
    counts = ("references", "predictions", "true_positives")
    assert [scores["pooled"][key] for key in counts] == [4, 2, 1]
    assert [scores["also"][0]["pooled"][key] for key in counts] == [4, 2, 2]
    # Picks that the workflow would call its own may be the reference: nothing is written over here.
    turned = ("--reference", "tomoscout/unet", "--predicted", "alice/1")
    assert "recall" in succeeded(copick(project, "evaluation", "tomoscout", *turned)).stdout


def test_picks_are_made_of_labels_chosen_and_written(project: SmallProject) -> None:
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[8:13, 8:13, 8:13] = labels[8:13, 18:23, 28:33] = 7
    predicted = Segmentation("predicted", "octopi", "1", 10.0, True)
    project.project().write_segmentation("TS_1", predicted, labels, {})
    membrane = np.zeros(SHAPE, dtype=bool)
    membrane[:, :, 20:22] = True
    project.add_segmentation("TS_1", "membrane:alice/1", membrane)

    localize = ("process", "tomoscout", "localize", "--segmentation", "predicted:octopi/1", "--smallest", "0.1")
    succeeded(copick(project, *localize, "--method", "components", "--object", "ribosome", "--session-id", "mine"))
    made = Source("ribosome", "tomoscout", "mine")
    assert project.project().read_picks("TS_1", made).positions.tolist() == [[*PLACES[0]], [*PLACES[1]]]

    extract = ("process", "tomoscout", "extract", "--kind", "near", "--picks", str(made), "-r", "TS_1")
    succeeded(copick(project, *extract, "--segmentation", "membrane:alice/1", "--distance", "90", "--orient"))
    near = project.project().read_picks("TS_1", Source("ribosome", "tomoscout", "near"))
    assert near.positions.tolist() == [[*PLACES[1]]]

    convert = ("convert", "tomoscout", "--format", "csv", "--format", "imod", "--picks", "tomoscout/near")
    succeeded(copick(project, *convert))
    folder = project.folder / "results/export"
    assert len((folder / "csv/picks.csv").read_text().splitlines()) == 2
    assert read_json(folder / "imod/export.json")["runs"]["demo/TS_1"]["picks"]["ribosome"]["written"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--picks", "bob/1"), "Error: targets.picks: no picks of bob/1 in any run; found picks of: alice/1"),
        (("--picks", "alice/1", "--picks", "bob/1"), "several must all be name:user/session"),
        (("--picks", "alice/1", "--set", "train.stepz=3"), "did you mean 'steps'?"),
        (("--picks", "alice/1", "--set", "train.steps"), "--set train.steps: expected key=value"),
        (("--picks", "alice/1", "--set", "train=1"), "Error: train.steps: train is a value and no section of options"),
    ],
)
def test_mistakes_end_in_one_line(project: SmallProject, arguments: tuple[str, ...], message: str) -> None:
    result = copick(project, "training", "tomoscout", "--steps", "2", *arguments)
    assert isinstance(result.exception, SystemExit) and result.exit_code
    assert message in result.stderr.splitlines()[-1]


def test_a_traceback_on_demand(project: SmallProject) -> None:
    convert = ("convert", "tomoscout", "--format", "csv", "--picks", "bob/1")
    assert copick(project, *convert).stderr.splitlines()[-1] == "Error: export.picks: no run has picks of bob/1"
    assert "no run has picks" in str(copick(project, *convert, "--debug").exception)


def test_without_a_project() -> None:
    arguments = ("--tomogram", "wbp@10.0", "--picks", "alice/1", "--format", "csv")
    result = CliRunner().invoke(cli, ["convert", "tomoscout", *arguments], env={"COPICK_CONFIG": None})
    assert "no project; give copick's configuration by -c/--config or in COPICK_CONFIG" in result.stderr


def test_a_file_without_options(project: SmallProject) -> None:
    (project.folder / "list.yaml").write_text("- 1\n")
    arguments = ("--picks", "alice/1", "--format", "csv", "--options", project.folder / "list.yaml")
    result = copick(project, "convert", "tomoscout", *arguments)
    assert result.stderr.splitlines()[-1].endswith("list.yaml: expected a mapping of options, found list")
