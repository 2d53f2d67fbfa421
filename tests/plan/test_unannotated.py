"""An object that is annotated in some runs alone: said, and left out or not counted where it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.project import SmallProject, succeeded
from tomoscout.data.picks import Picks
from tomoscout.learning.augmentations import Augmentation
from tomoscout.learning.augmentations.batch import augment
from tomoscout.machine.files import read_json
from tomoscout.options.config import Config
from tomoscout.plan.fingerprints import training_fingerprint
from tomoscout.plan.plan import Plan
from tomoscout.stages.train import run_train
from tomoscout.tasks.picking.data import TrainingData
from tomoscout.tasks.picking.head import PickingHead, Reference
from tomoscout.tasks.picking.options import Train

OPTIONS = {
    "steps": 2,
    "batch_size": 8,
    "patch": [16, 16, 16],
    "validate_every": 1,
    "device": "cpu",
    "network": {"channels": [4, 8], "strides": [2]},
}
SPLIT = {"train": ["a", "b"], "validate": ["c", "d"]}


@pytest.fixture
def project(small: SmallProject) -> SmallProject:
    """Ribosomes in four runs; ferritin in two of them, looked for without success in a third."""
    for run in "abcd":
        small.add_run(run)
        small.add_picks(run, "ribosome:expert/0", [(200.0, 160.0, 120.0)])
    for run in "bc":
        small.add_picks(run, "ferritin:expert/0", [(100.0, 100.0, 100.0)])
    small.add_picks("d", "ferritin:expert/0", [])
    return small


def configure(project: SmallProject, unannotated: str | None = None, **sections: Any) -> Config:
    targets = {"picks": "expert/0", **({"unannotated": unannotated} if unannotated else {})}
    return project.configure(
        targets=targets, train=OPTIONS, tracking={"enabled": False}, **{"split": SPLIT, **sections}
    )


def fingerprint(project: SmallProject, config: Config) -> str:
    records = project.refresh()
    plan = Plan(config, records)
    return training_fingerprint(plan, plan.fold(0))


def split(project: SmallProject) -> tuple[str, dict[str, Any]]:
    succeeded(project.list_runs())
    output = project.folder / "split.json"
    result = succeeded(project.command("split", "--output", output))
    return result.stderr, read_json(output)


def test_it_is_said_which_runs_teach_that_there_is_none(project: SmallProject) -> None:
    configure(project)
    message, _ = split(project)
    assert message.startswith(
        "warning: 'ferritin' is not annotated in 1 of 4 runs with a target (demo/a), which teach that there is none; "
    )
    assert "targets.unannotated to exclude" in message
    assert message.count("warning") == 1
    for unannotated in ("ignore", "exclude"):
        configure(project, unannotated, split={"ratios": 0.5})
        assert split(project)[0] == ""
    # Looked for and not found, or declared as empty, it is annotated.
    configure(project, split={"negatives": ["a"], "ratios": 0.5})
    assert split(project)[0] == ""


def test_runs_can_be_left_out(project: SmallProject) -> None:
    configure(project, "exclude", split={"ratios": 0.5})
    _, made = split(project)
    assert made["excluded"] == {"demo/a": "ferritin not annotated (targets.unannotated: exclude)"}
    assert "demo/a" not in str(made["folds"])


def test_what_a_training_depends_on(project: SmallProject) -> None:
    default = fingerprint(project, configure(project))
    assert fingerprint(project, configure(project, "background")) == default
    ignoring = fingerprint(project, configure(project, "ignore"))
    assert ignoring != default
    # Where its runs are all annotated the option changes nothing.
    whole = {"train": ["b"], "validate": ["c", "d"]}
    assert len({fingerprint(project, configure(project, how, split=whole)) for how in ("background", "ignore")}) == 1
    # Annotated as empty, by a file without picks, it counts again.
    project.add_picks("a", "ferritin:expert/0", [])
    assert fingerprint(project, configure(project, "ignore")) != ignoring


def test_the_loss_does_not_count_it_there(project: SmallProject) -> None:
    succeeded(project.make_targets())
    weights = {}
    for how in ("background", "ignore"):
        config = configure(project, how)
        succeeded(project.make_targets())
        folder = project.folder / how
        run_train(Plan(config, project.refresh()), folder)
        weights[how] = (folder / "weights.safetensors").read_bytes()
    assert weights["background"] != weights["ignore"]
    records = project.refresh()
    plan = Plan(config, records)
    data = TrainingData(config, plan.targets, records, plan.fold(0))
    names = [entry.name for entry in plan.targets.classes]
    expected = [[False, *(name == "ferritin" and run == "a" for name in names)] for run in "ab"]
    assert data.absent is not None
    assert data.absent.tolist() == expected
    assert [sorted(reference.ignored) for _, reference in data.validation_volumes(False)] == [[], []]


def test_a_blended_crop_lacks_what_either_lacks() -> None:
    absent = torch.tensor([[False, True, False], [False, False, True]])
    images, labels = torch.zeros(2, 1, 4, 4, 4), torch.zeros(2, 4, 4, 4, dtype=torch.int64)
    _, (found, *targets) = augment(images, labels, Augmentation(mixup=1.0), 3, 0, absent=absent)
    assert len(targets) == 3
    assert found.tolist() == [[False, True, True]] * 2
    _, (found, *targets) = augment(images, labels, Augmentation(), 3, 0, absent=absent)
    assert len(targets) == 1
    assert torch.equal(found, absent)


def test_validation_leaves_it_out_there(project: SmallProject, tmp_path: Path) -> None:
    config = configure(project, "ignore", split={"train": ["b", "c"], "validate": ["a", "d"]})
    records = project.refresh()
    plan = Plan(config, records)
    head = PickingHead(plan.targets.classes, 10.0, Train())
    labels = {entry.name: entry.label for entry in plan.targets.classes}
    # Both are found in the middle of a tomogram; ferritin is not annotated in the second.
    found = np.zeros((2, 24, 32, 40), dtype=np.uint8)
    for label, z in ((labels["ribosome"], 8), (labels["ferritin"], 16)):
        found[label - 1, z - 2 : z + 3, 14:19, 18:23] = 250
    there = {
        "ribosome": Picks.at(np.array([[200.0, 160.0, 80.0]])),
        "ferritin": Picks.at(np.array([[200.0, 160, 160]])),
    }
    without = {**there, "ferritin": Picks.at(np.zeros((0, 3)))}
    counted = head.measure([found, found], [Reference(there, None), Reference(without, None)])
    ignored = head.measure([found, found], [Reference(there, None), Reference(without, None, frozenset(["ferritin"]))])
    alone = head.measure([found], [Reference(there, None)])
    assert ignored.scores["ferritin"] == alone.scores["ferritin"] > counted.scores["ferritin"]
    nowhere = head.measure([found], [Reference(without, None, frozenset(["ferritin"]))])
    assert "ferritin" not in nowhere.scores
    data = TrainingData(config, plan.targets, records, plan.fold(0))
    assert data.absent is None
    succeeded(project.make_targets())
    assert [sorted(ref.ignored) for _, ref in data.validation_volumes(False)] == [["ferritin"], []]
