"""Annotated images are found in every layout, and bad folders are refused in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from pydantic import ValidationError

from tomoscout.machine.errors import TomoscoutError
from tomoscout.tasks.instances.annotated_images import AnnotatedImage
from tomoscout.tasks.instances.annotation_options import Annotations, Division, Normalisation, Source
from tomoscout.tasks.instances.annotations import (
    channel_numbers,
    find_annotations,
    missing_channels,
    network_calibration,
)

SHAPE = (12, 16)


def export(
    folder: Path, name: str, *, channels: list[str] | None = None, labels: Any = np.int16, **sidecar: Any
) -> None:
    """An image as Celldetective exports it."""
    names = channels or ["nuclei", "cytoplasm"]
    folder.mkdir(parents=True, exist_ok=True)
    image = np.full((len(names), *SHAPE), 7, dtype=np.uint16)
    tifffile.imwrite(folder / f"{name}.tif", image, imagej=True, metadata={"axes": "CYX"})
    tifffile.imwrite(folder / f"{name}_labelled.tif", np.eye(*SHAPE, dtype=labels))
    values = {"channels": names, "spatial_calibration": 0.5, "frame": 0, "well": "W1", **sidecar}
    (folder / f"{name}.json").write_text(json.dumps(values))


def plain(folder: Path, name: str, labels: str = "labels") -> None:
    """An image and its labels in folders of their own."""
    for kind in ("images", labels):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.eye(*SHAPE, dtype=np.uint8)).save(folder / kind / f"{name}.png")


def options(folder: Path, **given: Any) -> Annotations:
    return Annotations(annotations={"cells": str(folder)}, **{"channels": ["nuclei"], **given})


def refused(folder: Path, **given: Any) -> str:
    """The one line in which a folder is refused."""
    with pytest.raises(TomoscoutError) as raised:
        find_annotations(options(folder, **given))
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    folder = tmp_path / "annotations_cells"
    for name in ("exp_W1_0000", "exp_W1_0003_roi_0_16_0_12", "exp_W2_0000"):
        export(folder, name)
    return folder


def test_an_export_is_read_with_its_sidecars(exported: Path) -> None:
    found = find_annotations(options(exported))
    assert [entry.name for entry in found] == ["exp_W1_0000", "exp_W1_0003_roi_0_16_0_12", "exp_W2_0000"]
    assert found[1] == AnnotatedImage(
        "cells",
        "exp_W1_0003_roi_0_16_0_12",
        ("nuclei", "cytoplasm"),
        0.5,
        "exp_W1",
        SHAPE,
        "int16",
        exported / "exp_W1_0003_roi_0_16_0_12.tif",
        exported / "exp_W1_0003_roi_0_16_0_12_labelled.tif",
    )
    assert [entry.group for entry in found] == ["exp_W1", "exp_W1", "exp_W2"]


@pytest.mark.parametrize("labels", ["labels", "masks"])
def test_folders_of_images_and_labels_are_paired(tmp_path: Path, labels: str) -> None:
    for name in ("cell_0002", "cell_0001"):
        plain(tmp_path, name, labels)
    found = find_annotations(options(tmp_path, channels=[], uncalibrated=True))
    # Numbers in other names than those of an export count images.
    assert [(entry.name, entry.group, entry.channels) for entry in found] == [
        ("cell_0001", "cell_0001", ("1",)),
        ("cell_0002", "cell_0002", ("1",)),
    ]


@pytest.mark.parametrize("end", ["_labelled.tif", "_mask.png", "_labels.tiff"])
def test_marked_labels_lie_beside_their_images(tmp_path: Path, end: str) -> None:
    for name in ("a", "b"):
        tifffile.imwrite(tmp_path / f"{name}.tif", np.zeros(SHAPE, np.uint8))
        if end.endswith("png"):
            Image.fromarray(np.zeros(SHAPE, np.uint8)).save(tmp_path / (name + end))
        else:
            tifffile.imwrite(tmp_path / (name + end), np.zeros(SHAPE, np.uint8))
    (tmp_path / "notes.txt").touch()
    found = find_annotations(options(tmp_path, channels=["None", "1"], uncalibrated=True))
    assert [(entry.name, entry.labels.name) for entry in found] == [("a", f"a{end}"), ("b", f"b{end}")]


def test_colours_are_named_and_options_name_channels_where_no_sidecar_does(tmp_path: Path) -> None:
    for name in ("a", "b"):
        plain(tmp_path, name)
        Image.fromarray(np.zeros((*SHAPE, 4), np.uint8)).save(tmp_path / "images" / f"{name}.png")
    source: dict[str, Any] = {"folder": str(tmp_path), "calibration": 2}
    found = find_annotations(Annotations(annotations={"x": source}, channels=["Green"]))
    assert found[0].channels == ("red", "green", "blue")
    assert channel_numbers(found[0], ["Green", "none", "RED"]) == [1, None, 0]
    named = {**source, "channels": ["dna", "actin", "noise"]}
    found = find_annotations(Annotations(annotations={"x": named}, channels=["actin"]))
    assert (found[0].channels, found[0].calibration) == (("dna", "actin", "noise"), 2)


def test_a_channel_that_some_images_lack_is_black_there(exported: Path) -> None:
    export(exported, "exp_W3_0000", channels=["Nuclei"])
    found = find_annotations(options(exported, channels=["nuclei", "Cytoplasm", "None"]))
    assert [channel_numbers(entry, ["nuclei", "Cytoplasm", "None"]) for entry in found[-2:]] == [
        [0, 1, None],
        [0, None, None],
    ]
    assert [missing_channels(entry, ["nuclei", "Cytoplasm", "None"]) for entry in found[-2:]] == [[], ["Cytoplasm"]]


def test_folders_are_mixed_and_sorted(exported: Path, tmp_path: Path) -> None:
    export(tmp_path / "more", "exp_W1_0000", channels=["nuclei"], spatial_calibration=1.5)
    both = Annotations(annotations={"z": str(exported), "a": str(tmp_path / "more")}, channels=["nuclei"])
    found = find_annotations(both)
    assert [entry.source for entry in found] == ["a", "z", "z", "z"]
    assert network_calibration(both, found) == 0.5
    assert network_calibration(Annotations(calibration=0.8), found) == 0.8
    assert network_calibration(Annotations(), []) is None


def test_a_group_is_what_the_expression_matches(exported: Path) -> None:
    for pattern, groups in ((r"W\d", ["W1", "W1", "W2"]), (r"_(\d{4})", ["0000", "0003", "0000"])):
        source = {"folder": str(exported), "group": pattern}
        found = find_annotations(Annotations(annotations={"cells": source}, channels=["nuclei"]))
        assert [entry.group for entry in found] == groups
    source = {"folder": str(exported), "group": "roi"}
    with pytest.raises(TomoscoutError, match=r"cells\.annotations\.cells\.group: 'roi' does not match .*exp_W1_0000"):
        find_annotations(Annotations(annotations={"cells": source}, channels=["nuclei"]))


def test_the_digest_follows_content_and_not_time_or_place(exported: Path, tmp_path: Path) -> None:
    first = [entry.inputs for entry in find_annotations(options(exported))]
    moved = exported.rename(tmp_path / "elsewhere")
    (moved / "exp_W1_0000.tif").touch()
    assert [entry.inputs for entry in find_annotations(options(moved))] == first
    tifffile.imwrite(moved / "exp_W1_0000_labelled.tif", np.zeros(SHAPE, np.int16))
    export(moved, "exp_W2_0000", spatial_calibration=0.7)
    changed = [entry.inputs for entry in find_annotations(options(moved))]
    assert [one != other for one, other in zip(changed, first, strict=True)] == [True, False, True]


def test_missing_labels_are_named(exported: Path) -> None:
    for number in range(5):
        export(exported, f"exp_W5_000{number}")
        (exported / f"exp_W5_000{number}_labelled.tif").unlink()
    assert refused(exported) == (f"{exported}: labels missing for exp_W5_0000, exp_W5_0001, exp_W5_0002 and 2 more")


def test_labels_without_an_image_are_named(exported: Path) -> None:
    (exported / "exp_W1_0000.tif").unlink()
    assert refused(exported) == f"{exported}: an image missing for exp_W1_0000"


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    assert "no folder" in refused_options(Annotations())
    gone = tmp_path / "gone"
    assert refused(gone) == f"{gone}: no such folder (cells.annotations.cells.folder)"
    assert refused(tmp_path).startswith(f"{tmp_path}: no images; expected TIFF, PNG or OME-Zarr")


def refused_options(given: Annotations) -> str:
    with pytest.raises(TomoscoutError) as raised:
        find_annotations(given)
    return str(raised.value)


def test_a_single_image_is_refused(tmp_path: Path) -> None:
    export(tmp_path, "exp_W1_0000")
    assert refused(tmp_path).endswith("the only annotated image; expected at least two, one to validate on")


def test_two_files_of_one_name_are_refused(exported: Path) -> None:
    Image.fromarray(np.zeros(SHAPE, np.uint8)).save(exported / "exp_W1_0000.png")
    assert "exp_W1_0000.png has the same name" in refused(exported)


def test_sizes_that_differ_are_refused(exported: Path) -> None:
    tifffile.imwrite(exported / "exp_W1_0000_labelled.tif", np.zeros((9, 16), np.int16))
    assert refused(exported).endswith("exp_W1_0000_labelled.tif: 9 × 16 voxels, but its image has 12 × 16")


def test_labels_of_fractions_are_refused(exported: Path) -> None:
    export(exported, "exp_W2_0000", labels=np.float32)
    assert "exp_W2_0000_labelled.tif: its labels are float32, expected whole numbers" in refused(exported)


def test_unknown_channels_are_refused_with_those_that_are_there(exported: Path) -> None:
    assert refused(exported, channels=["nuclei", "cytoplsm"]) == (
        "cells.channels: no image has a channel 'cytoplsm'; did you mean cytoplasm? channels: cytoplasm, nuclei"
    )
    assert "2 channels (nuclei, cytoplasm); name those" in refused(exported, channels=[])
    assert refused(exported, channels=["None"]) == "cells.channels: all are black; expected one of cytoplasm, nuclei"


def test_a_missing_calibration_is_refused_unless_told(exported: Path) -> None:
    export(exported, "exp_W2_0000", spatial_calibration=None)
    message = refused(exported)
    assert "exp_W2_0000.tif: no calibration; expected spatial_calibration (µm per voxel) in exp_W2_0000.json" in message
    assert "cells.annotations.cells.calibration" in message
    assert [entry.calibration for entry in find_annotations(options(exported, uncalibrated=True))] == [0.5, 0.5, None]


@pytest.mark.parametrize(
    ("sidecar", "message"),
    [
        ({"channels": ["nuclei"]}, r"1 channels \(nuclei\), but .*exp_W2_0000.tif has 2"),
        ({"spatial_calibration": 0}, r"not the sidecar of an exported image \(.*spatial_calibration"),
        ({"channels": 3}, r"not the sidecar of an exported image \(.*channels"),
    ],
)
def test_sidecars_that_contradict_are_refused(exported: Path, sidecar: dict[str, Any], message: str) -> None:
    values = {"channels": ["nuclei", "cytoplasm"], "spatial_calibration": 0.5, **sidecar}
    (exported / "exp_W2_0000.json").write_text(json.dumps(values))
    with pytest.raises(TomoscoutError, match=rf"exp_W2_0000\.json: {message}"):
        find_annotations(options(exported))


def test_options_are_read_tolerantly_and_checked() -> None:
    given = Annotations(annotations={1: "a", "b": {"folder": "b", "weight": 2}}, normalisation={"values": [0, 255]})
    assert given.annotations == {"1": Source(folder="a"), "b": Source(folder="b", weight=2)}
    assert given.normalisations() == [Normalisation(values=[0, 255])]
    assert Annotations(channels=["a", "b"]).normalisations() == [Normalisation()] * 2
    assert Normalisation().clip is False
    assert Division(validate=0.3).validate_ == 0.3
    for section, values in (
        (Source, {"folder": "a", "group": "("}),
        (Normalisation, {"percentile": [5, 5]}),
        (Normalisation, {"values": [3, 1]}),
        (Annotations, {"channels": ["a"], "normalisation": [{}, {}]}),
        (Annotations, {"dimensions": 4}),
        (Division, {"validate": 0.5, "test": 0.5}),
    ):
        with pytest.raises(ValidationError):
            section.model_validate(values)


def test_options_load_nothing_slow() -> None:
    code = (
        "import sys, tomoscout.tasks.instances.annotation_options; "
        "print({'numpy', 'torch', 'skimage', 'scipy', 'tifffile', 'zarr'} & {*sys.modules})"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
