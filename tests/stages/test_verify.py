"""`tomoscout verify`: every manifest against its data, after every kind of damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from support.project import SHAPE, SmallProject, succeeded
from tomoscout.data.written import Probabilities
from tomoscout.machine.files import read_json

TRAIN = {
    "network": {"channels": [4, 8], "strides": [2]},
    "patch": [16, 16, 16],
    "batch_size": 1,
    "steps": 1,
    "validate_every": 1,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> SmallProject:
    """Two runs with targets, a model of one step, and what it segments and picks."""
    small = SmallProject(tmp_path_factory.mktemp("pristine"))
    for run in ("a", "b"):
        small.add_run(run)
        small.add_picks(run, "ribosome:expert/0", [(100.0, 100.0, 100.0), (300.0, 200.0, 100.0)])
    configure(small)
    succeeded(small.make_targets())
    small.refresh()
    results = small.folder / "results"
    model = results / "models" / "unet"
    succeeded(small.command("train", "--model", model, "--threads", "1"))
    segmented, localized = (results / stage / "unet" for stage in ("segment", "localize"))
    options = ("--model", model, "--batch", "0")
    succeeded(small.command("segment", *options, "--threads", "1", "--output", segmented / "batch-0000.json"))
    succeeded(small.command("localize", *options, "--segmented", segmented, "--output", localized / "batch-0000.json"))
    small.refresh()
    return small


def configure(small: SmallProject, **targets: str) -> None:
    small.configure(
        split={"train": ["a"], "validate": ["b"]},
        train=TRAIN,
        segment={"device": "cpu"},
        targets={"picks": ["ribosome:expert/0"], **targets},
    )


@pytest.fixture
def copied(pristine: SmallProject, tmp_path: Path) -> SmallProject:
    """The same to be damaged."""
    shutil.copytree(pristine.folder, tmp_path, dirs_exist_ok=True)
    small = SmallProject(tmp_path)
    configure(small)
    return small


def verify(small: SmallProject) -> Result:
    return small.command("verify", "--results", small.folder / "results")


def problems(small: SmallProject) -> list[str]:
    result = verify(small)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    return lines


def test_untouched_data_passes(copied: SmallProject) -> None:
    # Of each run the target, the labels, the probabilities and the picks; and the weights of the model.
    assert succeeded(verify(copied)).stdout == "9 digests compared, 0 problems\n"


def chunk(small: SmallProject, volume: str) -> Path:
    """The first file with voxels of a volume of run a."""
    folder = small.overlay / "ExperimentRuns" / "a" / volume / "0"
    return min(path for path in folder.rglob("[0-9]*") if path.is_file())


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def add_a_pick(small: SmallProject) -> None:
    path = small.overlay / "ExperimentRuns" / "a" / "Picks" / "tomoscout_unet_ribosome.json"
    values = json.loads(path.read_text())
    values["points"] = [*(values["points"] or []), {"location": {"x": 1.0, "y": 2.0, "z": 3.0}, "score": 1.0}]
    path.write_text(json.dumps(values))


TARGET = "Segmentations/10.000_tomoscout_1_targets-multilabel.zarr"
LABELS = "Segmentations/10.000_tomoscout_unet_predicted-multilabel.zarr"
PROBABILITIES = "VoxelSpacing10.000/wbp_tomoscout-unet_features.zarr"


@pytest.mark.parametrize(
    ("damage", "manifest", "what"),
    [
        (
            lambda small: flip_a_byte(chunk(small, TARGET)),
            "targets/targets/demo/a.json",
            "segmentation targets:tomoscout/1@10.0?multilabel=true has changed since it was written",
        ),
        (
            lambda small: chunk(small, TARGET).unlink(),
            "targets/targets/demo/a.json",
            "segmentation targets:tomoscout/1@10.0?multilabel=true has changed since it was written",
        ),
        (
            lambda small: shutil.rmtree(small.target_folder("a")),
            "targets/targets/demo/a.json",
            "segmentation targets:tomoscout/1@10.0?multilabel=true is gone",
        ),
        (
            lambda small: flip_a_byte(chunk(small, LABELS)),
            "segment/unet/demo/a.json",
            "segmentation predicted:tomoscout/unet@10.0?multilabel=true has changed since it was written",
        ),
        (
            lambda small: flip_a_byte(chunk(small, PROBABILITIES)),
            "segment/unet/demo/a.json",
            "probabilities tomoscout-unet has changed since it was written",
        ),
        (
            add_a_pick,
            "localize/unet/demo/a.json",
            "picks ribosome:tomoscout/unet has changed since it was written",
        ),
        (
            lambda small: (small.overlay / "ExperimentRuns/a/Picks/tomoscout_unet_ribosome.json").unlink(),
            "localize/unet/demo/a.json",
            "picks ribosome:tomoscout/unet is gone",
        ),
        (
            lambda small: flip_a_byte(small.folder / "results/models/unet/weights.safetensors"),
            "models/unet/model.yaml",
            "weights.safetensors has changed since it was written",
        ),
    ],
)
def test_damage_is_found(
    copied: SmallProject, damage: Callable[[SmallProject], object], manifest: str, what: str
) -> None:
    damage(copied)
    assert problems(copied) == [f"error: {copied.folder / 'results' / manifest}: {what}"]


def test_changed_voxels_are_found(copied: SmallProject) -> None:
    project = copied.project()
    [target] = [entry for entry in project.segmentations("b") if entry.name == "targets"]
    labels = project.read_segmentation("b", target)
    labels[0, 0, 0] = 1 - labels[0, 0, 0]
    project.write_segmentation("b", target, labels, {})
    [line] = problems(copied)
    assert "demo/b.json: segmentation targets:tomoscout/1@10.0" in line


def test_a_run_that_is_gone_is_found(copied: SmallProject) -> None:
    shutil.rmtree(copied.overlay / "ExperimentRuns" / "a")
    copied.refresh()
    lines = problems(copied)
    assert len(lines) == 3
    assert all(line.endswith("run demo/a is no longer in the projects") for line in lines)


def test_targets_of_another_name_are_compared_with_their_own_data(copied: SmallProject) -> None:
    configure(copied, name="finer")
    copied.refresh()
    output = copied.folder / "results" / "targets" / "finer" / "batch-0000.json"
    succeeded(copied.command("targets", "--batch", "0", "--output", output))
    copied.refresh()
    assert succeeded(verify(copied)).stdout == "11 digests compared, 0 problems\n"
    shutil.rmtree(copied.target_folder("a"))
    [line] = problems(copied)
    assert f"{copied.targets / 'demo' / 'a.json'}: segmentation targets:tomoscout/1@10.0" in line


def test_pictures_of_the_targets_are_no_data(copied: SmallProject) -> None:
    pictures = copied.targets / "pictures"
    succeeded(
        copied.command(
            "overlays", "--targets", copied.targets, "--batch", "0", "--output", pictures / "batch-0000.json"
        )
    )
    assert (pictures / "demo" / "a.png").exists()
    assert succeeded(verify(copied)).stdout == "9 digests compared, 0 problems\n"


# Several voxel spacings


@pytest.fixture
def two_spacings(small: SmallProject) -> SmallProject:
    """A run with targets at 10 and 20 Å, and one at 20 Å alone."""
    small.add_run("a")
    for run in ("a", "b"):
        small.add_run(run, uri="wbp@20.0", shape=(12, 16, 20))
        small.add_picks(run, "ribosome:expert/0", [(100.0, 100.0, 100.0)])
    small.configure(tomograms=["wbp@10.0", "wbp@20.0"])
    succeeded(small.make_targets())
    small.refresh()
    return small


def test_every_target_of_a_run_is_compared(two_spacings: SmallProject) -> None:
    assert succeeded(verify(two_spacings)).stdout == "3 digests compared, 0 problems\n"


@pytest.mark.parametrize("damaged", [[10.0], [20.0], [10.0, 20.0]], ids=str)
def test_damage_is_found_at_every_voxel_spacing(two_spacings: SmallProject, damaged: list[float]) -> None:
    for spacing in damaged:
        flip_a_byte(chunk(two_spacings, f"Segmentations/{two_spacings.target_folder('a', spacing).name}"))
    start = f"error: {two_spacings.targets / 'demo' / 'a.json'}: segmentation targets:tomoscout/1@"
    end = "?multilabel=true has changed since it was written"
    assert problems(two_spacings) == [f"{start}{spacing}{end}" for spacing in damaged]


def test_a_target_that_is_gone_does_not_hide_damage_of_the_next(two_spacings: SmallProject) -> None:
    shutil.rmtree(two_spacings.target_folder("a"))
    flip_a_byte(chunk(two_spacings, f"Segmentations/{two_spacings.target_folder('a', 20.0).name}"))
    gone, changed = problems(two_spacings)
    assert gone.endswith("demo/a.json: segmentation targets:tomoscout/1@10.0?multilabel=true is gone")
    assert "demo/a.json: segmentation targets:tomoscout/1@20.0?multilabel=true has changed" in changed


def test_a_manifest_that_lists_no_targets_is_a_problem(two_spacings: SmallProject) -> None:
    path = two_spacings.targets / "demo" / "b.json"
    path.write_text(json.dumps({key: value for key, value in read_json(path).items() if key != "targets"}))
    assert problems(two_spacings) == [f"error: {path}: not a manifest of the targets stage (KeyError('targets'))"]


def test_shapes_of_what_was_made(pristine: SmallProject) -> None:
    project = pristine.project()
    assert all(project.read_segmentation("a", entry).shape == SHAPE for entry in project.segmentations("a"))
    assert project.read_probabilities("a", Probabilities("wbp@10.0", "tomoscout-unet")).shape == (1, *SHAPE)
    assert np.isin(project.read_segmentation("a", project.segmentations("a")[0]), [0, 7]).all()
