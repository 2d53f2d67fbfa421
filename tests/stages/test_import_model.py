"""Models of octopi's applied as they are: model folders that give the probabilities of octopi's networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from support.octopi import DYNUNET, SEGRESNET, UNET, as_octopi_builds, write_model
from support.project import SmallProject, error_of, succeeded
from tomoscout.data.written import Probabilities
from tomoscout.learning.normalisation import standardise
from tomoscout.options.config import parse_config
from tomoscout.options.names import model_name
from tomoscout.tasks.picking.model import PickingModel

LABELS = {"ferritin": 2, "ribosome": 1, "membrane": 3}
SEGMENT = {"device": "cpu", "tile": [64, 64, 64]}


@pytest.fixture
def project(small: SmallProject) -> SmallProject:
    """Two runs with a tomogram, and nothing to learn."""
    for run in ("one", "two"):
        small.add_run(run)
    return small


def configure(project: SmallProject, source: Path, **sections: Any) -> Path:
    """Apply a model of octopi's; returns the folder of what is made of it."""
    project.configure(**{"targets": {}, "segment": {**SEGMENT, "models": [str(source)]}, **sections})
    succeeded(project.list_runs())
    return project.folder / "results/models" / model_name(str(source))


def make(project: SmallProject, source: Path, folder: Path) -> str:
    return succeeded(project.command("import-model", source, "--model", folder)).stderr


@pytest.mark.parametrize("network", [UNET, DYNUNET, SEGRESNET], ids=lambda network: network["architecture"])
def test_probabilities_are_those_of_the_network(project: SmallProject, network: dict[str, Any]) -> None:
    source = write_model(project.folder, network, labels=LABELS)
    folder = configure(project, source, segment={**SEGMENT, "models": [str(source)], "precision": "float32"})
    said = make(project, source, folder)
    assert said == (
        f"note: {source} has no thresholds: 0.5 for every object; give localize.threshold, or targets, on whose "
        "validation runs they are chosen\n"
    )
    output = project.folder / "results/segment/batch-0.json"
    succeeded(project.command("segment", "--model", folder, "--batch", "0", "--output", output))
    tomogram = project.project().read_tomogram("one", "wbp@10.0")
    # As large as a tile, which is padded to what the network takes.
    sizes = PickingModel.read(folder).network.size_step()
    padding = [(0, -size % step) for size, step in zip(tomogram.shape, sizes, strict=True)]
    padded = torch.from_numpy(np.pad(standardise(tomogram), padding, mode="reflect"))[None, None]
    with torch.inference_mode():
        expected = torch.softmax(as_octopi_builds(network)(padded)[0], dim=0)[1:].numpy()
    expected = expected[(slice(None), *(slice(0, size) for size in tomogram.shape))]
    found = project.project().read_probabilities("one", Probabilities("wbp@10.0", f"tomoscout-{folder.name}"))
    assert expected.std() > 0.01
    np.testing.assert_allclose(found / 255, expected, atol=0.51 / 255)


def test_what_the_model_folder_says(project: SmallProject) -> None:
    source = write_model(project.folder, UNET, labels=LABELS)
    folder = configure(project, source, targets={"radius_scale": 0.5}, localize={"threshold": 0.3})
    assert make(project, source, folder) == ""
    model = PickingModel.read(folder)
    assert [(e.name, e.label, e.radius, e.target_radius) for e in model.classes] == [
        ("ribosome", 1, 60.0, 30.0),
        ("ferritin", 2, 40.0, 20.0),
        ("membrane", 3, None, None),
    ]
    assert (model.patch, model.voxel_spacings) == ((32, 32, 32), (10.0,))
    assert model.thresholds == {"ribosome": 0.5, "ferritin": 0.5}
    assert model.made_from == {"octopi": str(source), "thresholds_chosen_on": []}


def test_channels_of_no_class_are_left_out(project: SmallProject) -> None:
    source = write_model(project.folder, UNET, labels={"ribosome": 1, "ferritin": 3})
    folder = configure(project, source)
    assert f"note: channels [2] of {source} are of no class and left out\n" in make(project, source, folder)
    model = PickingModel.read(folder)
    assert [(entry.name, entry.label) for entry in model.classes] == [("ribosome", 1), ("ferritin", 2)]


def test_an_object_that_the_project_lacks(project: SmallProject) -> None:
    source = write_model(project.folder, UNET, labels={"spike": 1, "ribosome": 2, "ferritin": 3})
    folder = configure(project, source)
    message = error_of(project.command("import-model", source, "--model", folder))
    expected = f"no object 'spike', a class of {source}; add it to pickable_objects, with its radius in Å"
    assert message.startswith(f"{project.copick}: {expected}")
    assert not folder.exists()


def test_tomograms_of_another_voxel_spacing_are_refused(project: SmallProject) -> None:
    source = write_model(project.folder, UNET, labels=LABELS)
    source.write_text(source.read_text().replace("wbp@10.0", "wbp@5.0"))
    folder = configure(project, source)
    make(project, source, folder)
    output = project.folder / "results/segment/batch-0.json"
    message = error_of(project.command("segment", "--model", folder, "--batch", "0", "--output", output))
    expected = "trained at 5.0 Å per voxel, but the tomogram to segment is wbp@10.0; give another one, or set segment."
    assert expected in message


def test_thresholds_are_chosen_on_validation_runs(project: SmallProject) -> None:
    """The network as it comes finds the particle where it answers most strongly to the tomogram."""
    project.add_run("three")
    source = write_model(project.folder, UNET, labels=LABELS)
    folder = configure(project, source)
    make(project, source, folder)
    options = ("--model", folder, "--batch", "0", "--output")
    succeeded(project.command("segment", *options, project.folder / "results/segment/batch-0.json"))
    probabilities = project.project().read_probabilities("two", Probabilities("wbp@10.0", f"tomoscout-{folder.name}"))
    z, y, x = np.unravel_index(int(probabilities[0].argmax()), probabilities[0].shape)
    for run in ("one", "two", "three"):
        project.add_picks(run, "ribosome:expert/0", [(10.0 * x, 10.0 * y, 10.0 * z)])
    split = {"train": ["one"], "validate": ["two"], "test": ["three"]}
    configure(project, source, targets={"picks": ["ribosome:expert/0"]}, split=split)
    said = make(project, source, folder)
    assert "note: the targets have no ferritin: threshold 0.5\n" in said
    assert "ribosome: threshold " in said
    model = PickingModel.read(folder)
    assert model.made_from["thresholds_chosen_on"] == ["demo/two"]
    assert model.thresholds["ferritin"] == 0.5
    assert f"ribosome: threshold {model.thresholds['ribosome']:g} (F4 " in said


def test_names_of_models_from_elsewhere() -> None:
    assert model_name("results/models/unet") == model_name("x/unet/model.yaml") == "unet"
    assert model_name("a/my_model@2") == "my-model-2"
    one, other = model_name("a/best/model_config.yaml"), model_name("b/best/model_config.yaml")
    assert one != other and one.startswith("best-") and other.startswith("best-")
    values = {
        "projects": {"p": "p.json"},
        "tomograms": ["wbp@10.0"],
        "segment": {"models": ["a/best/model_config.yaml"]},
    }
    assert parse_config(values, "x").session == one


def test_an_unreadable_list_of_tomograms(project: SmallProject) -> None:
    source = write_model(project.folder, UNET, labels=LABELS)
    values = yaml.safe_load(source.read_text())
    values["dataloader"]["tomo_uris"] = [3]
    source.write_text(yaml.safe_dump(values))
    folder = configure(project, source)
    message = error_of(project.command("import-model", source, "--model", folder))
    assert message == f"{source}: dataloader.tomo_uris is [3], expected tomograms such as wbp@10.0"
