"""Every bad input, as a user meets it: a command that ends in one line, which names what is at fault."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import Result

from support.project import SHAPE, SmallProject, error_of, succeeded, tomoscout
from tomoscout.machine.files import digest_folder, read_json, write_json
from tomoscout.plan.plan import Plan

PLACE = (100.0, 100.0, 100.0)
TRAIN = {
    "network": {"channels": [4, 8], "strides": [2]},
    "patch": [16, 16, 16],
    "batch_size": 1,
    "steps": 2,
    "validate_every": 1,
    "device": "cpu",
}


@pytest.fixture
def annotated(small: SmallProject) -> SmallProject:
    """Two runs with a ribosome each."""
    for run in ("a", "b"):
        small.add_run(run)
        small.add_picks(run, "ribosome:expert/0", [PLACE])
    return small


def split(small: SmallProject) -> Result:
    succeeded(small.list_runs())
    return small.command("split", "--output", small.folder / "split.json")


def overlays(small: SmallProject) -> Result:
    """The first stage that reads the voxels of tomograms."""
    succeeded(small.make_targets())
    output = small.targets / "pictures" / "batch-0000.json"
    return small.command("overlays", "--targets", small.targets, "--batch", "0", "--output", output)


def train(small: SmallProject) -> Result:
    return small.command("train", "--model", small.folder / "model", "--threads", "1")


def test_a_process_of_its_own_ends_in_one_line_without_a_traceback(small: SmallProject) -> None:
    small.settings.write_text(small.settings.read_text() + "trian: {steps: 5}\n")
    command = [sys.executable, "-m", "tomoscout", "inventory", "--config", str(small.settings)]
    finished = subprocess.run(command, cwd=small.folder, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert finished.stdout == ""
    assert finished.stderr == f"error: {small.settings}: top level: unknown key 'trian'; did you mean 'train'?\n"


# The configuration


@pytest.fixture
def unloaded(small: SmallProject) -> Any:
    """Writes a configuration without reading it back."""

    def write(text: str) -> Result:
        small.settings.write_text(text)
        return small.list_runs()

    return write


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "projects: {a: b}\ntomograms: [wbp@10]\ntrain: {stepz: 5}\n",
            "train: unknown key 'stepz'; did you mean 'steps'?",
        ),
        ("projects: {a: b}\ntomograms: [wbp@10]\ntrain: {steps: x}\n", "train.steps: Input should be a valid integer"),
        ("projects: {a: b}\ntomograms: [wbp]\n", "tomograms: 'wbp' is not a tomogram URI"),
        ("projects: {a: b}\n", "tomograms: Field required"),
        ("projects: {a: b\n", "not valid YAML"),
        ("5\n", "expected a mapping of options, found int"),
    ],
)
def test_a_bad_configuration(small: SmallProject, unloaded: Any, text: str, message: str) -> None:
    found = error_of(unloaded(text))
    assert found.startswith(f"{small.settings}: {message}")


def test_no_configuration(small: SmallProject) -> None:
    small.settings.unlink()
    assert error_of(small.list_runs()) == f"{small.settings}: no such configuration file"


# The copick project


def test_no_copick_config(small: SmallProject) -> None:
    small.copick.unlink()
    assert error_of(small.list_runs()) == f"{small.copick}: no such copick config"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a copick config (Expecting"),
        ("", "not a copick config (Expecting"),
        ("[]", "not a copick config (no list 'pickable_objects')"),
        ('{"name": "demo"}', "not a copick config (no list 'pickable_objects')"),
        ('{"config_type": "paper", "pickable_objects": []}', "not a copick config ("),
    ],
)
def test_a_bad_copick_config(small: SmallProject, content: str, message: str) -> None:
    small.copick.write_text(content)
    assert error_of(small.list_runs()).startswith(f"{small.copick}: {message}")


def test_a_pickable_object_that_is_malformed(annotated: SmallProject) -> None:
    annotated.configure(targets={"picks": "expert/0"})
    succeeded(annotated.list_runs())
    annotated.write_copick_config(pickable_objects=[{"name": "ribosome"}])
    message = error_of(annotated.command("targets", "--batch", "0", "--output", annotated.folder / "x.json"))
    assert message.startswith(f"{annotated.copick}: a pickable object is malformed (KeyError('is_particle'))")


def test_a_project_whose_folder_is_not_there(small: SmallProject) -> None:
    expected = f"{small.copick}: overlay_root: no folder {small.overlay}; is its disk mounted, and the path right?"
    assert error_of(small.list_runs()) == expected


def test_a_project_without_runs(small: SmallProject) -> None:
    small.overlay.mkdir()
    expected = f"project demo ({small.copick}): holds no run: no folder in {small.overlay / 'ExperimentRuns'}"
    assert error_of(small.list_runs()) == expected


# Objects, sources and runs


def test_an_object_that_is_not_there(annotated: SmallProject) -> None:
    annotated.configure(targets={"picks": ["kinesin"]})
    message = error_of(annotated.make_targets())
    assert message == "targets.picks: no picks 'kinesin' in any run; found: ribosome:expert/0"


def test_picks_of_an_object_that_the_copick_config_lacks(annotated: SmallProject) -> None:
    annotated.add_picks("a", "kinesin:expert/0", [PLACE])
    annotated.configure(targets={"picks": ["kinesin"]})
    message = error_of(annotated.make_targets())
    assert message == (
        "targets.picks: no project has an object 'kinesin'; objects: ferritin, membrane, proteasome, ribosome"
    )


@pytest.mark.parametrize("radius", [None, 0, -5.0])
def test_an_object_without_radius(annotated: SmallProject, radius: float | None) -> None:
    entries = [{**entry, "color": [1, 2, 3, 255]} for entry in annotated.objects]
    entries[0] |= {"radius": radius}
    succeeded(annotated.list_runs())
    annotated.write_copick_config(pickable_objects=entries)
    message = error_of(annotated.command("targets", "--batch", "0", "--output", annotated.folder / "x.json"))
    assert message == f"{annotated.copick}: object 'ribosome' has no radius (in Å); its target spheres need one"


def test_an_object_whose_radius_is_another_in_another_project(annotated: SmallProject) -> None:
    other = SmallProject(annotated.folder, "other")
    other.add_run("c")
    entries = [{**entry, "color": [1, 2, 3, 255]} for entry in annotated.objects]
    entries[0] |= {"radius": 75.0}
    other.write_copick_config(pickable_objects=entries)
    annotated.configure(projects={"demo": str(annotated.copick), "other": str(other.copick)})
    message = error_of(annotated.make_targets())
    assert message.startswith("object 'ribosome' has different radii: ")
    assert f"'{annotated.copick}': 60.0" in message
    assert f"'{other.copick}': 75.0" in message


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (
            {},
            "targets.picks: nothing to learn; give user/session or a list of objects (segment.models applies a trained "
            "model without any)",
        ),
        (
            {"picks": "student/0"},
            "targets.picks: no picks of student/0 in any run; found picks of: expert/0",
        ),
        (
            {"picks": ["ribosome:student/0"]},
            "targets.picks: no picks 'ribosome:student/0' in any run; found: ribosome:expert/0",
        ),
        (
            {"segmentations": ["membrane"]},
            "targets.segmentations: no binary segmentation 'membrane' in any run; found: none",
        ),
        (
            {"picks": ["ribosome"], "runs": ["a", "z"]},
            "targets.runs: no run 'z' in the projects; there are 2 runs, such as a, b",
        ),
    ],
    ids=str,
)
def test_sources_and_runs_that_are_not_there(annotated: SmallProject, targets: dict[str, Any], message: str) -> None:
    annotated.configure(targets=targets)
    assert error_of(annotated.make_targets()) == message


def test_a_multilabel_segmentation_is_no_source(annotated: SmallProject) -> None:
    succeeded(annotated.make_targets())
    annotated.configure(targets={"segmentations": ["targets"]})
    assert error_of(annotated.make_targets()) == (
        "targets.segmentations: no binary segmentation 'targets' in any run; "
        "found: targets:tomoscout/1@10.0?multilabel=true"
    )


# Tomograms


@pytest.mark.parametrize("uri", ["wbp@13.48", "denoised@10.0"])
def test_another_voxel_spacing_or_algorithm(annotated: SmallProject, uri: str) -> None:
    annotated.configure(tomograms=[uri])
    for result in (annotated.make_targets(), split(annotated)):
        assert error_of(result) == (
            f"targets: none of 2 runs has a tomogram {uri} and picks or a segmentation of ribosome:expert/0; "
            "tomograms found: wbp@10.0"
        )


def test_a_chosen_run_without_the_tomogram(annotated: SmallProject) -> None:
    annotated.add_run("c", uri="denoised@5.0")
    annotated.configure(targets={"picks": ["ribosome"], "runs": ["a", "c"]})
    assert error_of(annotated.make_targets()) == "demo/c: no tomogram wbp@10.0; found: denoised@5.0"


def test_a_truncated_tomogram(annotated: SmallProject) -> None:
    (annotated.add_run("a") / "0" / "1" / "1" / "1").unlink()
    assert error_of(overlays(annotated)) == (
        "demo/a: tomogram wbp@10.0: truncated: 7 of 8 chunks are there, the others would be read as background"
    )


def test_a_damaged_tomogram(annotated: SmallProject) -> None:
    (annotated.add_run("a") / "0" / "1" / "1" / "1").write_bytes(b"not a chunk")
    assert error_of(overlays(annotated)).startswith("demo/a: tomogram wbp@10.0: a chunk cannot be decoded (")


def test_a_tomogram_with_a_voxel_that_is_no_number(annotated: SmallProject) -> None:
    volume = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    volume[3, 4, 5] = np.nan
    annotated.write_tomogram("a", volume)
    assert error_of(overlays(annotated)) == "demo/a: tomogram wbp@10.0 holds NaN or infinite values"


def test_a_constant_tomogram(annotated: SmallProject) -> None:
    annotated.write_tomogram("a", np.zeros(SHAPE, dtype=np.float32))
    assert error_of(overlays(annotated)) == "demo/a: tomogram wbp@10.0 is constant (every voxel is 0)"


def test_a_bad_tomogram_stops_a_training_too(annotated: SmallProject) -> None:
    annotated.write_tomogram("a", np.zeros(SHAPE, dtype=np.float32))
    annotated.configure(split={"train": ["a"], "validate": ["b"]}, train=TRAIN)
    succeeded(annotated.make_targets())
    assert error_of(train(annotated)) == "demo/a: tomogram wbp@10.0 is constant (every voxel is 0)"
    assert not (annotated.folder / "model" / "model.yaml").exists()


# Segmentations


def test_a_truncated_segmentation(annotated: SmallProject) -> None:
    folder = annotated.add_segmentation("a", "membrane:expert/0", np.ones(SHAPE))
    (folder / "0" / "0" / "1" / "0").unlink()
    annotated.configure(targets={"segmentations": ["membrane"]})
    assert error_of(annotated.make_targets()).startswith(
        "demo/a: segmentation membrane:expert/0@10.0: truncated: 7 of 8 chunks are there"
    )
    annotated.configure(targets={"segmentations": ["membrane"], "allow_missing_chunks": True})
    succeeded(annotated.make_targets())


def test_a_damaged_segmentation(annotated: SmallProject) -> None:
    folder = annotated.add_segmentation("a", "membrane:expert/0", np.ones(SHAPE))
    (folder / "0" / "0" / "1" / "0").write_bytes(b"")
    annotated.configure(targets={"segmentations": ["membrane"]})
    assert error_of(annotated.make_targets()).startswith(
        "demo/a: segmentation membrane:expert/0@10.0: a chunk cannot be decoded ("
    )


@pytest.mark.parametrize("shape", [(24, 32, 45), (19, 32, 40)], ids=str)
def test_a_segmentation_of_another_shape(annotated: SmallProject, shape: tuple[int, ...]) -> None:
    annotated.add_segmentation("a", "membrane:expert/0", np.ones(shape))
    annotated.configure(targets={"segmentations": ["membrane"]})
    assert error_of(annotated.make_targets()) == (
        f"demo/a: segmentation membrane:expert/0@10.0: shape {shape} (z, y, x) is more than 4 voxels off the "
        f"tomogram's {SHAPE}"
    )


@pytest.mark.parametrize("shape", [(24, 32), (2, *SHAPE)], ids=str)
def test_a_segmentation_with_other_axes(annotated: SmallProject, shape: tuple[int, ...]) -> None:
    annotated.add_segmentation("a", "membrane:expert/0", np.ones(shape))
    annotated.configure(targets={"segmentations": ["membrane"]})
    assert error_of(annotated.make_targets()) == (
        f"demo/a: segmentation membrane:expert/0@10.0: its shape is {shape}, expected three axes: z, y, x"
    )


def test_a_segmentation_at_another_voxel_spacing_of_another_shape(annotated: SmallProject) -> None:
    annotated.add_segmentation("a", "membrane:expert/0", np.ones(SHAPE), spacing=5.0)
    annotated.configure(targets={"segmentations": ["membrane"]})
    assert error_of(annotated.make_targets()) == (
        "demo/a: segmentation membrane:expert/0@5.0 brought to 10.0 Å: shape (12, 16, 20) (z, y, x) is more than 4 "
        f"voxels off the tomogram's {SHAPE}"
    )


@pytest.mark.parametrize("stage", [overlays, train], ids=["overlays", "train"])
def test_a_run_that_is_excluded_cannot_stop_a_stage(annotated: SmallProject, stage: Any) -> None:
    for run in ("c", "d"):
        annotated.add_run(run)
        annotated.add_picks(run, "ribosome:expert/0", [PLACE])
    annotated.write_tomogram("c", np.full(SHAPE, np.nan, dtype=np.float32))
    annotated.configure(split={"ratios": 0.5, "exclude": {"c": "NaN"}}, train=TRAIN)
    succeeded(annotated.make_targets())
    succeeded(stage(annotated))


def test_every_run_that_fails_is_named_and_the_others_are_done(annotated: SmallProject) -> None:
    for run in ("c", "d"):
        annotated.add_run(run)
        annotated.add_picks(run, "ribosome:expert/0", [PLACE])
    for run in ("b", "d"):
        annotated.write_tomogram(run, np.full(SHAPE, np.nan, dtype=np.float32))
    assert error_of(overlays(annotated)) == (
        "2 of 4 runs failed; the others are done: demo/b: tomogram wbp@10.0 holds NaN or infinite values; "
        "demo/d: tomogram wbp@10.0 holds NaN or infinite values"
    )
    pictures = annotated.targets / "pictures"
    assert sorted(path.name for path in pictures.rglob("*.png")) == ["a.png", "c.png"]
    assert not (pictures / "batch-0000.json").exists()


def test_a_tomogram_that_cannot_be_read_is_told_of_a_run_with_picks(annotated: SmallProject) -> None:
    (annotated.add_run("b") / "0" / ".zarray").write_text("{")
    succeeded(annotated.make_targets())
    [warning] = Plan(annotated.config, annotated.refresh()).targets.warnings
    assert warning.startswith("demo/b: tomogram wbp@10.0 cannot be read and is left out: no readable zarr array: ")


# Objects


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_particle": "no"}, "is_particle of 'ribosome' is 'no', expected true or false"),
        ({"label": 0}, "label of 'ribosome' is 0, expected a whole number from 1 to 65535"),
        ({"label": "seven"}, "label of 'ribosome' is 'seven', expected a whole number"),
        ({"color": [1, 2]}, "color of 'ribosome' is (1, 2), expected four numbers"),
    ],
    ids=str,
)
def test_nonsense_in_the_copick_config(annotated: SmallProject, changes: dict[str, Any], message: str) -> None:
    succeeded(annotated.list_runs())
    entries = [{**entry, "color": [1, 2, 3, 255]} for entry in annotated.objects]
    entries[0] |= changes
    annotated.write_copick_config(pickable_objects=entries)
    found = error_of(annotated.command("targets", "--batch", "0", "--output", annotated.folder / "x.json"))
    assert found.startswith(f"{annotated.copick}: a pickable object is malformed (")
    assert message in found


def test_two_objects_of_one_name(annotated: SmallProject) -> None:
    succeeded(annotated.list_runs())
    annotated.write_copick_config(pickable_objects=[*annotated.objects, annotated.objects[0]])
    message = error_of(annotated.command("targets", "--batch", "0", "--output", annotated.folder / "x.json"))
    assert message == f"{annotated.copick}: two pickable objects have the name 'ribosome'; give each its own"


@pytest.mark.parametrize("radius", [math.inf, math.nan, 1e6])
def test_an_absurd_radius(annotated: SmallProject, radius: float) -> None:
    succeeded(annotated.list_runs())
    entries = [{**entry, "color": [1, 2, 3, 255]} for entry in annotated.objects]
    entries[0] |= {"radius": radius}
    annotated.write_copick_config(pickable_objects=entries)
    message = error_of(annotated.command("targets", "--batch", "0", "--output", annotated.folder / "x.json"))
    assert message == f"{annotated.copick}: object 'ribosome' has the radius {radius:g} Å, expected 100000 Å at most"


def test_an_object_whose_picks_are_all_empty_is_left_out_and_told(annotated: SmallProject) -> None:
    for run in ("a", "b"):
        annotated.add_picks(run, "ferritin:expert/0", [])
    annotated.configure(targets={"picks": "expert/0"})
    plan = Plan(annotated.config, annotated.refresh()).targets
    assert [entry.name for entry in plan.classes] == ["ribosome"]
    assert plan.warnings == ("targets.picks: ferritin: no pick of expert/0 in any run; left out",)
    for run in ("a", "b"):
        annotated.add_picks(run, "ribosome:expert/0", [])
    assert error_of(annotated.make_targets()) == (
        "targets.picks: the picks of expert/0 are empty in every run; found picks of: expert/0"
    )


def test_an_object_that_one_project_lacks_is_told_before_the_training(annotated: SmallProject) -> None:
    other = SmallProject(annotated.folder, "other")
    other.add_run("c")
    other.write_copick_config(pickable_objects=[{**annotated.objects[1], "color": [1, 2, 3, 255]}])
    annotated.configure(projects={"demo": str(annotated.copick), "other": str(other.copick)})
    assert error_of(annotated.make_targets()) == (
        f"{other.copick}: no object 'ribosome', which the model unet finds; picks of it cannot be written: add "
        '{"name": "ribosome", "is_particle": true, "label": 2, "radius": 60.0} to pickable_objects'
    )
    annotated.configure(
        projects={"demo": str(annotated.copick), "other": str(other.copick)}, segment={"runs": ["a", "b"]}
    )
    succeeded(annotated.make_targets())


def test_a_reference_that_is_not_there_is_named_as_such(annotated: SmallProject) -> None:
    annotated.configure(split={"ratios": 0.5}, evaluate={"reference": "alice/1", "runs": "all"})
    succeeded(annotated.list_runs())
    message = error_of(annotated.command("evaluate", "--localized", annotated.folder, "--output", annotated.folder))
    assert message == "evaluate.reference: no picks of alice/1 in any run; found picks of: expert/0"


# Picks


@pytest.mark.parametrize("content", ["{", "", "[]", "null", "{}", '{"points": 5}'])
def test_a_picks_file_that_is_broken(annotated: SmallProject, content: str) -> None:
    path = annotated.add_picks("b", "ribosome:expert/0", [PLACE])
    path.write_text(content)
    assert error_of(annotated.make_targets()).startswith(f"targets.picks: demo/b: {path}: not a copick picks file (")


@pytest.mark.parametrize("point", [{"location": {"x": 1.0}}, {"place": [1, 2, 3]}, 5], ids=str)
def test_a_malformed_point(annotated: SmallProject, point: object) -> None:
    path = annotated.add_picks("b", "ribosome:expert/0", [PLACE])
    path.write_text(json.dumps({**json.loads(path.read_text()), "points": [point]}))
    message = error_of(annotated.make_targets())
    assert message.startswith("targets.picks: demo/b: picks ribosome:expert/0: a point is malformed (")


def test_a_position_that_is_no_number(annotated: SmallProject) -> None:
    annotated.add_picks("b", "ribosome:expert/0", [PLACE, (1.0, math.inf, 2.0)])
    assert error_of(annotated.make_targets()).startswith(
        "targets.picks: demo/b: picks ribosome:expert/0: a value is NaN or infinite"
    )


def test_picks_that_are_not_used_cannot_stop_anything(annotated: SmallProject) -> None:
    path = annotated.add_picks("b", "ferritin:somebody/0", [PLACE])
    path.write_text(path.read_text()[:40])
    assert f"warning: demo/b: ferritin:somebody/0 is left out: demo/b: {path}: not a" in annotated.list_runs().stderr
    succeeded(annotated.make_targets())
    annotated.add_picks("b", "ribosome:expert/0", [PLACE]).write_text("{")
    annotated.configure(split={"exclude": {"b": "half a file"}})
    succeeded(annotated.make_targets())


def test_a_file_among_the_picks_that_is_none(annotated: SmallProject) -> None:
    stray = annotated.add_picks("b", "ribosome:expert/0", [PLACE]).with_name("notes.json")
    stray.write_text("{}")
    assert f"{stray} is left out: a name that copick cannot read" in succeeded(annotated.list_runs()).stderr
    succeeded(annotated.make_targets())


def test_picks_that_are_empty_everywhere(annotated: SmallProject) -> None:
    for run in ("a", "b"):
        annotated.add_picks(run, "ribosome:expert/0", [])
    expected = "targets.picks: ribosome:expert/0 are empty in all 2 runs; expected a point in one of them at least"
    assert error_of(annotated.make_targets()) == expected
    assert error_of(split(annotated)) == expected


# Splits


def test_a_run_that_trains_and_validates(annotated: SmallProject) -> None:
    annotated.configure(split={"train": ["a", "b"], "validate": ["demo/b"]})
    assert error_of(split(annotated)) == "split: run 'demo/b' is listed under both train and validate"


def test_too_few_runs(annotated: SmallProject) -> None:
    (annotated.add_picks("b", "ribosome:expert/0", [])).unlink()
    message = error_of(split(annotated))
    assert message.startswith(
        "split default: no run is left for 'validate' (fold 0, 1 usable runs, 1 excluded: demo/b: "
    )


def test_a_class_that_no_training_run_holds(annotated: SmallProject) -> None:
    annotated.add_picks("b", "ferritin:expert/0", [PLACE])
    annotated.configure(targets={"picks": "expert/0"}, split={"train": ["a"], "validate": ["b"]}, train=TRAIN)
    message = "split default: no training run has 'ferritin' (ferritin:expert/0), only demo/b; list one of these under"
    assert error_of(split(annotated)).startswith(message)
    assert error_of(train(annotated)).startswith(message)


def test_a_class_that_no_validation_run_holds_does_not_spoil_the_score(annotated: SmallProject) -> None:
    annotated.add_picks("a", "ferritin:expert/0", [(300.0, 200.0, 100.0)])
    annotated.configure(targets={"picks": "expert/0"}, split={"train": ["a"], "validate": ["b"]}, train=TRAIN)
    succeeded(annotated.make_targets())
    succeeded(train(annotated))
    results = read_json(annotated.folder / "model" / "results.json")
    assert math.isfinite(results["score"])
    assert results["scores"] == {"ribosome": results["score"]}
    assert all(0 < threshold < 1 for threshold in results["thresholds"].values())
    model = yaml.safe_load((annotated.folder / "model" / "model.yaml").read_text())
    thresholds = {entry["name"]: entry["threshold"] for entry in model["classes"]}
    assert thresholds["ferritin"] == 0.5


def test_no_class_that_any_validation_run_holds(annotated: SmallProject) -> None:
    annotated.add_picks("b", "ribosome:expert/0", [])
    annotated.configure(split={"train": ["a"], "validate": ["b"]}, train=TRAIN)
    succeeded(annotated.make_targets())
    expected = "split: the validation runs (demo/b) hold no ribosome; choose others under split.validate"
    assert error_of(train(annotated)) == expected


# Trainings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"class_weights": {"kinesin": 2}},
            "train.class_weights: no class 'kinesin'; the classes are background, ribosome",
        ),
        (
            {"class_sampling": {"background": 2}},
            "train.class_sampling: no class 'background'; the classes are ribosome",
        ),
        (
            {"class_sampling": {"ribosome": 0}},
            "train.class_sampling: 0 for every class that the training runs hold; give",
        ),
        ({"best_metric": "fBeta1_class2"}, "train.best_metric: fBeta1_class2, but the classes are 1 ribosome"),
        ({"precision": "fp16"}, "train.precision: fp16 needs a GPU; use float32, bf16 or auto"),
        ({"base": "nowhere"}, "train.base: nowhere/model.yaml: no such file; expected a model folder, or octopi's"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_the_project(annotated: SmallProject, options: dict[str, Any], message: str) -> None:
    annotated.configure(split={"train": ["a"], "validate": ["b"]}, train=TRAIN | options)
    succeeded(annotated.make_targets())
    assert error_of(train(annotated)).startswith(message)
    assert not (annotated.folder / "model" / "model.yaml").exists()


def test_a_fold_that_there_is_not(annotated: SmallProject) -> None:
    annotated.configure(split={"folds": 2}, train=TRAIN)
    succeeded(annotated.make_targets())
    options = ("--model", annotated.folder / "model", "--fold")
    expected = "split.fold: 2 asked for, but there are folds 0 to 1"
    assert error_of(annotated.command("train", *options, "2")) == expected
    assert annotated.command("train", *options, "-1").exit_code == 2


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        ({}, "evaluate.runs: there are no test runs, and every run but those of split.test trained some of the folds"),
        (
            {"runs": "validate"},
            "evaluate.runs: validate, and every run but those of split.test trained some of the folds",
        ),
    ],
    ids=str,
)
def test_folds_together_are_not_scored_on_what_they_were_trained_on(
    annotated: SmallProject, evaluate: dict[str, Any], message: str
) -> None:
    annotated.configure(split={"folds": 2}, segment={"models": "folds"}, evaluate=evaluate)
    succeeded(annotated.list_runs())
    assert error_of(
        annotated.command("evaluate", "--localized", annotated.folder, "--output", annotated.folder / "scores")
    ).startswith(message)


def test_folds_that_cannot_be_compared(small: SmallProject) -> None:
    folders = [small.folder / name for name in ("first", "second")]
    table = small.folder / "table.csv"
    assert (
        error_of(tomoscout("compare-folds", *folders, "--output", table)) == f"{folders[0]}/results.json: no such file"
    )
    for folder, metric in zip(folders, ("fBeta4 of particles", "avg_f1 of voxels"), strict=True):
        write_json(folder / "results.json", {"metric": metric, "classes": ["ribosome"], "score": 0.5, "scores": {}})
    message = error_of(tomoscout("compare-folds", *folders, "--output", table))
    assert (
        message == f"{small.folder}: the models were chosen by different scores: avg_f1 of voxels, fBeta4 of particles"
    )
    assert not table.exists()


def test_a_folder_without_a_training_cannot_be_tracked(small: SmallProject) -> None:
    message = error_of(tomoscout("track", small.folder / "nothing", "--config", small.settings))
    assert message == f"{small.folder}/nothing: no training to record: neither model.yaml nor training.json names one"


# Nothing already written is lost


def made(small: SmallProject, run: str) -> tuple[str, str]:
    """What stands of a run: the digest of its target, and the one that its manifest gives."""
    return digest_folder(small.target_folder(run)), small.target(run)["digest"]


def test_a_source_that_breaks_leaves_the_earlier_target(annotated: SmallProject) -> None:
    mask = np.zeros(SHAPE)
    mask[:5] = 1
    annotated.configure(targets={"picks": ["ribosome"], "segmentations": ["membrane"]})
    for run in ("a", "b"):
        folder = annotated.add_segmentation(run, "membrane:expert/0", mask)
    succeeded(annotated.make_targets())
    before = {run: made(annotated, run) for run in ("a", "b")}

    chunk = folder / "0" / "0" / "0" / "0"
    content = chunk.read_bytes()
    chunk.unlink()
    # A change of the folder itself is what a cheap look sees.
    (folder / ".zattrs").write_text("{}")
    assert "demo/b: segmentation membrane:expert/0@10.0: truncated" in error_of(annotated.make_targets())
    assert {run: made(annotated, run) for run in ("a", "b")} == before
    assert succeeded(annotated.command("verify", "--results", annotated.folder / "results")).exit_code == 0

    chunk.write_bytes(content)
    (folder / ".zattrs").unlink()
    succeeded(annotated.make_targets())
    assert {run: made(annotated, run) for run in ("a", "b")} == before


def test_picks_that_break_leave_the_earlier_targets(annotated: SmallProject) -> None:
    succeeded(annotated.make_targets())
    before = {run: made(annotated, run) for run in ("a", "b")}
    path = annotated.add_picks("b", "ribosome:expert/0", [])
    path.write_text(json.dumps({**json.loads(path.read_text()), "points": [{"location": None}]}))
    assert "demo/b: picks ribosome:expert/0" in error_of(annotated.make_targets())
    assert {run: made(annotated, run) for run in ("a", "b")} == before


def test_a_target_replaced_without_its_manifest_is_not_taken_for_done(annotated: SmallProject) -> None:
    """A job killed between data and manifest, and then the old configuration again."""
    succeeded(annotated.make_targets())
    before = made(annotated, "a")
    annotated.configure(targets={"picks": ["ribosome:expert/0"], "radius_scale": 0.3})
    manifest = annotated.targets / "demo" / "a.json"
    script = """
import os, signal
from tomoscout.stages.batches import Batch
from tomoscout.cli import main
Batch.finish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
main()
"""
    output = annotated.targets / "batch-0000.json"
    options = ["--config", annotated.settings, "--inventory", annotated.inventory, "--batch", "0", "--output", output]
    command = [sys.executable, "-c", script, "targets", *options]
    assert subprocess.run(command, check=False, capture_output=True).returncode < 0
    assert digest_folder(annotated.target_folder("a")) != before[0]
    assert manifest.exists()
    annotated.configure()
    succeeded(annotated.make_targets())
    assert made(annotated, "a") == before


def test_a_damaged_manifest_names_its_file(annotated: SmallProject) -> None:
    succeeded(annotated.make_targets())
    path = annotated.targets / "demo" / "a.json"
    path.write_text("{")
    assert error_of(annotated.make_targets()).startswith(f"{path}: not valid JSON")
    assert annotated.target_folder("a").exists()


def test_a_target_that_disappeared_stops_a_training(annotated: SmallProject) -> None:
    annotated.configure(split={"train": ["a"], "validate": ["b"]}, train=TRAIN)
    succeeded(annotated.make_targets())
    shutil.rmtree(annotated.target_folder("a"))
    assert error_of(train(annotated)) == (
        "demo/a: segmentation targets:tomoscout/1@10.0?multilabel=true is not there; run the targets stage again "
        "(snakemake … --forcerun targets_runs)"
    )


def test_a_folder_that_cannot_be_written(annotated: SmallProject) -> None:
    succeeded(annotated.list_runs())
    blocked = annotated.folder / "blocked"
    blocked.write_text("a file where a folder is wanted")
    assert error_of(annotated.command("split", "--output", blocked / "split.json")).startswith(f"{blocked}: ")
