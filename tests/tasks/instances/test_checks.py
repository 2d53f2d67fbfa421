"""What the check says of annotated images: each finding is made once, and not where there is nothing."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tomoscout.data.label_images import read_labels, write_image, write_labels
from tomoscout.machine.errors import TomoscoutError
from tomoscout.tasks.instances.annotated_images import AnnotatedImage
from tomoscout.tasks.instances.annotation import Annotation
from tomoscout.tasks.instances.annotation_options import Annotations
from tomoscout.tasks.instances.annotations import find_annotations
from tomoscout.tasks.instances.brightness import contrast, has_structure, unlabelled_areas
from tomoscout.tasks.instances.check_pictures import PROBLEM, UNLABELLED, picture
from tomoscout.tasks.instances.checks import Finding, check, run_check
from tomoscout.tasks.instances.made_up import MadeUp, make_annotations, make_image

SHAPES = [(160, 160), (24, 64, 64)]
SEEDS = range(4)


def made(shape: tuple[int, ...], seed: int) -> MadeUp:
    return make_image(shape, np.random.default_rng(seed), cells=16, radius=8)


def annotation(shape: tuple[int, ...]) -> Annotation:
    return AnnotatedImage("cells", "a", ("nuclei", "cytoplasm"), 0.5, "g", shape, "int16", Path(), Path())


def checked(labels: np.ndarray, image: np.ndarray | None = None, channels: tuple[str, ...] = ("nuclei",)) -> Finding:
    if image is None:
        image = np.random.default_rng(0).poisson(100, (2, *labels.shape))
    return check(annotation(labels.shape), image, labels, channels)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_complete_annotations_look_annotated(shape: tuple[int, ...], seed: int) -> None:
    image, labels = made(shape, seed)
    finding = checked(labels, image)
    assert (finding.looks, finding.unlabelled, finding.suspicious) == ("annotated", 0, False)
    assert (finding.objects, finding.gaps, finding.in_pieces) == (labels.max(), 0, [])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_cells_without_any_label_look_unannotated(shape: tuple[int, ...], seed: int) -> None:
    image, labels = made(shape, seed)
    assert checked(np.zeros_like(labels), image).looks == "un-annotated"


@pytest.mark.parametrize("seed", SEEDS)
def test_cells_half_of_which_have_no_label_look_partly_annotated(seed: int) -> None:
    image, labels = made(SHAPES[0], seed)
    finding = checked(np.where(labels % 2 == 0, labels, 0), image)
    assert finding.looks == "partly annotated" and finding.suspicious


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_images_that_show_nothing_are_empty(shape: tuple[int, ...], seed: int) -> None:
    image = make_image(shape, np.random.default_rng(seed), cells=0, radius=8).image
    finding = checked(np.zeros(shape, np.int32), image)
    assert (finding.looks, finding.suspicious) == ("empty", False)


def test_a_frame_of_zeros_is_no_structure() -> None:
    noise = np.random.default_rng(0).poisson(200, (100, 120))
    assert not has_structure(np.pad(noise, 70))
    assert not has_structure(np.zeros((30, 30)))
    assert not has_structure(np.full((30, 30), 9.5))


def test_without_noise_what_is_brighter_stands_out() -> None:
    channel = np.full((80, 80), 10.0)
    channel[30:42, 30:42] = 11
    assert has_structure(channel)
    assert contrast(channel)[36, 36] > 1000


def test_unlabelled_areas_are_numbered_and_lie_on_the_cells() -> None:
    image, labels = made(SHAPES[0], 1)
    kept = np.where(labels % 2 == 0, labels, 0)
    areas, count = unlabelled_areas(image[0], kept)
    assert sorted(np.unique(areas)) == [*range(count + 1)]
    for number in range(1, count + 1):
        assert (labels[areas == number] % 2 == 1).any()
    assert not (kept[areas > 0]).any()


def test_dark_objects_raise_no_alarm() -> None:
    image, labels = made(SHAPES[0], 2)
    assert checked(labels, 4000 - image).looks == "annotated"


def test_numbers_pieces_touching_and_tiny_objects_are_found() -> None:
    labels = np.zeros((40, 40), dtype=np.int32)
    labels[2:8, 2:8] = 3
    labels[2:8, 8:14] = 900_000_000
    labels[20:25, 2:8] = labels[30:35, 2:8] = 7
    labels[30, 30:38] = 9
    # Corners connect, but do not touch.
    labels[10:15, 20:25] = labels[15:20, 25:30] = 11
    labels[20:25, 30:35] = 12
    finding = checked(labels)
    assert finding.objects == 6
    assert finding.gaps == 900_000_000 - 6
    assert finding.in_pieces == [7]
    assert finding.touching == [3, 900_000_000]
    assert finding.tiny == [9]
    row = finding.to_row()
    assert (row["in_pieces"], row["touching"], row["tiny"], row["size"], row["dtype"]) == (
        "7",
        2,
        "9",
        "40x40",
        "int16",
    )


def test_missing_channels_are_listed_and_the_first_present_one_is_looked_at() -> None:
    image, labels = made(SHAPES[0], 0)
    image[1] = 0
    finding = checked(labels * 0, image, ("None", "Membrane", "CYTOPLASM"))
    assert finding.missing_channels == ["Membrane"]
    assert finding.looks == "empty"


@pytest.mark.parametrize("shape", [(700, 300), (40, 60), (5, 40, 60)])
def test_a_picture_is_small_and_marks_problems(shape: tuple[int, ...]) -> None:
    labels = np.zeros(shape, dtype=np.int32)
    labels[..., 5:15, 5:15] = 1
    labels[..., 20:30, 20:30] = 2
    bright = np.zeros(shape, dtype=np.int32)
    bright[..., 5:15, 25:28] = 1
    png = picture(np.random.default_rng(0).random(shape), labels, {2}, bright)
    opened = Image.open(io.BytesIO(png))
    assert max(opened.size) == 512
    colours = {colour for _, colour in opened.convert("RGB").getcolors(10_000)}
    assert {PROBLEM, UNLABELLED} <= colours


def test_the_check_writes_a_table_pictures_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_annotations(tmp_path / "cells", 4, (64, 64), 0, cells=4, radius=7, empty=1)
    found = find_annotations(Annotations(annotations={"<cells>": str(tmp_path / "cells")}, channels=["nuclei"]))
    findings = run_check(found, ["nuclei"], tmp_path / "check")
    with (tmp_path / "check" / "annotations.tsv").open() as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    assert [row["name"] for row in rows] == [entry.name for entry in found]
    assert [int(row["objects"]) for row in rows] == [len(np.unique(entry.read_labels())) - 1 for entry in found]
    assert rows[-1]["looks"] == findings[-1].looks == "empty"
    page = (tmp_path / "check" / "index.html").read_text()
    sources = re.findall(r'src="([^"]+)"', page)
    assert len(sources) == 4
    assert all((tmp_path / "check" / finding.picture).exists() for finding in findings)
    assert "<cells>" not in page and "&lt;cells&gt;" in page
    assert not re.search(r'(src|href)="(/|https?:)', page)


def test_the_same_annotations_give_the_same_check(tmp_path: Path) -> None:
    make_annotations(tmp_path / "cells", 3, (64, 64), 0, cells=4, radius=7)
    found = find_annotations(Annotations(annotations={"cells": str(tmp_path / "cells")}, channels=["nuclei"]))
    for folder in ("one", "other"):
        run_check(found, ["nuclei"], tmp_path / folder)
    contents = [
        {path.relative_to(tmp_path / folder): path.read_bytes() for path in (tmp_path / folder).rglob("*.*")}
        for folder in ("one", "other")
    ]
    assert contents[0] == contents[1]


def test_annotations_without_any_object_are_refused_after_the_table_is_written(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_image(tmp_path / "images" / f"{name}.tif", made((64, 64), 0).image[:1], 0.5)
        write_labels(tmp_path / "labels" / f"{name}.tif", np.zeros((64, 64), np.int32), 0.5)
    found = find_annotations(Annotations(annotations={"cells": str(tmp_path)}, uncalibrated=True))
    with pytest.raises(TomoscoutError, match=r"annotations\.tsv: none of 2 images has an object"):
        run_check(found, [], tmp_path / "check")
    assert "un-annotated" in (tmp_path / "check" / "annotations.tsv").read_text()


def test_an_unannotated_image_stays_itself(tmp_path: Path) -> None:
    """Celldetective's loader takes such an image for a copy of the one before it."""
    make_annotations(tmp_path, 3, (64, 64), 0, cells=4, radius=7)
    found = find_annotations(Annotations(annotations={"cells": str(tmp_path)}, channels=["nuclei"]))
    write_labels(found[1].labels, np.zeros((64, 64), np.int32), 0.5)
    again = find_annotations(Annotations(annotations={"cells": str(tmp_path)}, channels=["nuclei"]))
    assert len({entry.inputs for entry in again}) == 3
    assert not read_labels(again[1].labels, 2).any()
    assert again[1] == found[1]
