"""The stages that score a model of instances and that segment images with it."""

from __future__ import annotations

import csv
import io
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image

from support import instances
from support.instances import UNTRAINED
from tomoscout.data.label_images import read_image, read_labels, write_image
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import read_json
from tomoscout.options.config import Config, load_config
from tomoscout.report.cell_scores import ANNOTATED, FALSE, FOUND, MISSED, compared
from tomoscout.stages import evaluate_cells
from tomoscout.stages.divide_cells import run_divide_cells
from tomoscout.stages.evaluate_cells import run_evaluate_cells, summary, warnings
from tomoscout.stages.segment_cells import run_segment_cells
from tomoscout.stages.train_cells import run_train_cells
from tomoscout.tasks.instances import applied
from tomoscout.tasks.instances.annotations import find_annotations
from tomoscout.tasks.instances.applied import AppliedModel
from tomoscout.tasks.instances.division import write_division
from tomoscout.tasks.instances.made_up import CALIBRATION, CHANNELS, make_annotations, make_image
from tomoscout.tasks.instances.options import CellSegment
from tomoscout.tasks.instances.scores import overlaps
from tomoscout.tasks.instances.shown import Shown

torch.set_num_threads(1)
CPU = torch.device("cpu")
TRAIN = instances.TRAIN | {"steps": 60}


def configure(folder: Path, annotations: Path, train: Mapping[str, Any] | None = None, **cells: Any) -> Config:
    path = folder / "config.yaml"
    section = {"annotations": {"made-up": str(annotations)}, "channels": ["nuclei"], **cells}
    section |= {"train": {**TRAIN, **(train or {})}, "segment": {"device": "cpu"}}
    path.write_text(yaml.safe_dump({"cells": section, "tracking": {"enabled": False}}))
    return load_config(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Annotations (the last are empty), a division, and the models `trained` and `untrained`; not to be changed."""
    folder = tmp_path_factory.mktemp("cells")
    make_annotations(folder / "annotations", 18, (80, 80), 0, cells=8, radius=9, empty=2)
    config = configure(folder, folder / "annotations")
    run_divide_cells(config, folder / "division.json")
    for name, changes in (("trained", {}), ("untrained", UNTRAINED)):
        run_train_cells(configure(folder, folder / "annotations", changes), folder / "division.json", folder / name)
    return folder


def evaluate(place: Path, name: str, output: Path, **changes: Any) -> dict[str, Any]:
    config = configure(output, place / "annotations", **changes)
    return run_evaluate_cells(config, place / "division.json", place / name, output / "scores.json")


@pytest.fixture(scope="module")
def evaluated(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    evaluate(place, "trained", folder)
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def matches(found: NDArray[np.integer], annotated: NDArray[np.integer], iou: float) -> int:
    """How many annotated objects one found object overlaps by more than `iou`; every pair is compared."""
    count = 0
    for number in np.unique(annotated[annotated > 0]):
        mask = annotated == number
        others = [found == other for other in np.unique(found[mask]) if other]
        count += any((mask & other).sum() / (mask | other).sum() > iou for other in others)
    return count


def test_scores_are_those_of_the_labels_that_the_model_gives(place: Path, evaluated: Path) -> None:
    scores, rows = read_json(evaluated / "scores.json"), rows_of(evaluated / "images.csv")
    members = read_json(place / "division.json")["test"]
    assert [(row["source"], row["name"]) for row in rows] == [(entry["source"], entry["name"]) for entry in members]
    assert (scores["part"], scores["images"]) == ("test", len(members))
    model = AppliedModel(place / "trained", CPU)
    totals = np.zeros(4, int)
    for row in rows:
        image = read_image(place / "annotations" / f"{row['name']}.tif", 2)
        annotated = read_labels(place / "annotations" / f"{row['name']}_labelled.tif", 2)
        found = model.labels(image, [0], CALIBRATION)
        counts = [annotated.max(), found.max(), matches(found, annotated, 0.5), matches(found, annotated, 0.75)]
        assert [int(row[name]) for name in ("annotated", "found", "matched")] == counts[:3]
        totals += counts
    annotated, found, half, three_quarters = totals.tolist()
    by_iou = {entry["iou"]: entry for entry in scores["scores"]}
    assert half > 0
    assert by_iou[0.5]["ap"] == pytest.approx(half / (annotated + found - half), abs=1e-4)
    assert by_iou[0.75]["ap"] == pytest.approx(three_quarters / (annotated + found - three_quarters), abs=1e-4)
    assert by_iou[0.5]["recall"] == pytest.approx(half / annotated, abs=1e-4)
    assert scores["mean_ap"] == pytest.approx(np.mean([entry["ap"] for entry in scores["scores"]]), abs=1e-4)
    for entry in scores["scores"]:
        assert entry["ap_interval"][0] <= entry["ap"] <= entry["ap_interval"][1]


def test_the_page_shows_the_scores_and_pictures_that_exist(evaluated: Path) -> None:
    page, scores = (evaluated / "report.html").read_text(), read_json(evaluated / "scores.json")
    assert f"{scores['mean_ap']:.3f}" in page
    assert f"{scores['scores'][0]['ap']:.3f}" in page
    assert 'class="warning"' not in page
    assert "data:image/png;base64," in page
    pictures = sorted(str(path.relative_to(evaluated / "pictures")) for path in (evaluated / "pictures").glob("*/*"))
    assert len(pictures) == scores["images"]
    for name in pictures:
        assert f'src="pictures/{name}"' in page
        with Image.open(evaluated / "pictures" / name) as picture:
            assert max(picture.size) == 512


def test_the_worst_images_are_shown_first_and_empty_ones_that_are_right_last(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_annotations(tmp_path / "annotations", 12, (80, 80), 3, cells=8, radius=9, empty=3)
    config = configure(tmp_path, tmp_path / "annotations")
    # All are validated on but one.
    names = sorted(path.stem for path in (tmp_path / "annotations").glob("*.json"))
    division = {"train": names[:1], "validate": names[1:], "test": []}
    found = find_annotations(config.cells)
    parts = {part: [("made-up", name) for name in some] for part, some in division.items()}
    write_division(tmp_path / "division.json", parts, found)
    for shown in (12, 2):
        monkeypatch.setattr(evaluate_cells, "SHOWN", shown)
        output = tmp_path / str(shown) / "scores.json"
        run_evaluate_cells(config, tmp_path / "division.json", place / "trained", output)
        page = output.with_name("report.html").read_text()
        order = re.findall(r'src="pictures/made-up/(.*)\.png"', page)
        assert len(order) == min(shown, len(names) - 1)
    rows = {row["name"]: row for row in rows_of(output.with_name("images.csv"))}
    scores = {name: float(row["mean_ap"]) for name, row in rows.items() if row["mean_ap"]}
    assert [scores[name] for name in order] == sorted(scores.values())[:2]
    right = [row for row in rows.values() if row["annotated"] == row["found"] == "0"]
    assert all(row["mean_ap"] == "" for row in right)


def test_pictures_show_what_is_found_missed_and_false_in_their_colours() -> None:
    annotated, found = np.zeros((2, 60, 60), np.int32)
    annotated[5:15, 5:15], annotated[5:15, 40:50] = 1, 2
    found[6:15, 5:15], found[40:50, 40:50] = 4, 9
    shown = Shown.of("a/b", np.ones((60, 60)), found, annotated, overlaps(found, annotated))
    picture = np.asarray(Image.open(io.BytesIO(compared(shown))))

    def colours(rows: slice, columns: slice) -> set[tuple[int, ...]]:
        part = picture[rows, columns].reshape(-1, 3)
        return {tuple(colour) for colour in part.tolist() if len(set(colour)) > 1}

    assert colours(slice(0, 256), slice(0, 256)) == {ANNOTATED, FOUND}
    assert colours(slice(0, 256), slice(256, 512)) == {MISSED}
    assert colours(slice(256, 512), slice(256, 512)) == {FALSE}
    assert shown.text == "1 of 2 objects found, 1 false; 0 merges, 0 splits"


def test_a_trained_model_finds_its_own_training_images(evaluated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = read_json(evaluated / "scores.json")
    assert scores["training"]["scores"][0]["recall"] > 0.5
    assert warnings(scores) == []


def test_of_an_untrained_model_it_says_that_it_has_not_learnt(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = evaluate(place, "untrained", tmp_path)
    (line,) = warnings(scores)
    assert line.endswith("look at the annotations (snakemake check_annotations), the channels and the calibration")
    assert "objects of its own training images" in line and "it has not learnt" in line
    assert f"warning: {line}" in capsys.readouterr().err
    assert "it has not learnt" in (tmp_path / "report.html").read_text()


def test_it_says_when_fine_tuning_made_it_worse(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = evaluate(place, "untrained", tmp_path, train={"base": str(place / "trained" / "model.yaml")})
    line = f"fine-tuning made it worse: mean AP {scores['base']['mean_ap']:.3f} with the base, {scores['mean_ap']:.3f}"
    assert line in warnings(scores)[1]
    assert line in capsys.readouterr().err
    assert "AP of the base" in (tmp_path / "report.html").read_text()
    better = evaluate(place, "trained", tmp_path, train={"base": str(place / "untrained")})
    assert warnings(better) == []
    assert better["base"] == {name: scores[name] for name in ("mean_ap", "merges", "splits", "scores")}


def test_training_images_without_objects_raise_no_alarm() -> None:
    nothing = np.zeros((8, 8), np.int32)
    assert warnings({"mean_ap": 0.5, "training": summary([overlaps(nothing, nothing)])}) == []


def test_without_test_images_those_of_the_validation_are_scored(place: Path, tmp_path: Path) -> None:
    config = configure(tmp_path, place / "annotations", division={"test": 0})
    run_divide_cells(config, tmp_path / "division.json")
    scores = run_evaluate_cells(config, tmp_path / "division.json", place / "trained", tmp_path / "scores.json")
    assert scores["part"] == "validate"
    assert "as there are none to test on" in (tmp_path / "report.html").read_text()


def segment(place: Path, output: Path, images: Sequence[Path], **options: Any) -> dict[str, Any]:
    defaults = {"channels": CHANNELS, "calibration": CALIBRATION, "device": "cpu"}
    asked = CellSegment(**{"images": list(map(str, images)), **defaults, **options})
    run_segment_cells(asked, place / "trained", output / "segmented.json")
    found: dict[str, Any] = read_json(output / "segmented.json")
    return found


def made_up(path: Path, shape: tuple[int, int] = (96, 112), seed: int = 7, scale: int = 1) -> NDArray[np.int32]:
    """Write an image of cells with pixels `scale` times smaller; returns its labels."""
    made = make_image(shape, np.random.default_rng(seed), cells=14, radius=9)
    enlarge = np.ones((scale, scale), int)
    write_image(path, np.kron(made.image, enlarge[None]).astype(np.uint16), CALIBRATION / scale)
    return np.kron(made.labels, enlarge).astype(np.int32)


def test_labels_and_a_table_are_written_beside_each_image(place: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    truth = {name: made_up(images / f"{name}.tif", seed=seed) for seed, name in enumerate(("one", "other"))}
    found = segment(place, tmp_path, [images])
    assert [Path(entry["image"]).name for entry in found["images"]] == ["one.tif", "other.tif"]
    assert sorted(path.name for path in images.iterdir()) == sorted(
        f"{name}{end}" for name in truth for end in (".tif", "_cells.tif", "_cells.csv")
    )
    for entry in found["images"]:
        labels, rows = read_labels(Path(entry["labels"]), 2), rows_of(Path(entry["table"]))
        assert np.array_equal(np.unique(labels), np.arange(len(rows) + 1))
        assert entry["objects"] == len(rows)
        annotated = truth[Path(entry["image"]).stem]
        assert matches(labels, annotated, 0.5) > 0.6 * annotated.max()
        image = read_image(Path(entry["image"]), 2)
        for row in rows:
            mask = labels == int(row["label"])
            assert int(row["voxels"]) == mask.sum()
            assert float(row["area_um2"]) == pytest.approx(mask.sum() * CALIBRATION**2, rel=1e-5)
            assert float(row["mean_cytoplasm"]) == pytest.approx(image[1][mask].mean(), rel=1e-5)
            assert [float(row[axis]) for axis in "yx"] == pytest.approx(np.argwhere(mask).mean(0).tolist(), abs=0.01)


def test_what_it_made_before_it_makes_again_and_takes_for_no_image(place: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    made_up(images / "one.tif")
    first = segment(place, tmp_path, [images])
    labels = (images / "one_cells.tif").read_bytes()
    (images / "one_cells.tif").write_bytes(b"damaged")
    assert segment(place, tmp_path, [images]) == first
    assert (images / "one_cells.tif").read_bytes() == labels


@pytest.mark.parametrize("name", ["other_cells.tif", "other_cells.csv"])
def test_it_writes_over_no_file_of_others_and_nothing_before_it_says_so(place: Path, tmp_path: Path, name: str) -> None:
    images = tmp_path / "images"
    for image in ("one", "other"):
        made_up(images / f"{image}.tif")
    (images / name).write_text("mine")
    with pytest.raises(TomoscoutError, match=rf"{name}: already there, and not by this stage"):
        segment(place, tmp_path, [images / "one.tif", images / "other.tif"])
    assert (images / name).read_text() == "mine"
    assert {path.name for path in images.iterdir()} == {"one.tif", "other.tif", name}


def test_two_images_of_one_name_are_refused(place: Path, tmp_path: Path) -> None:
    made_up(tmp_path / "one.tif")
    shutil.copy(tmp_path / "one.tif", tmp_path / "one.tiff")
    with pytest.raises(TomoscoutError, match=r"one\.tiff?: another image has the same name"):
        segment(place, tmp_path, [tmp_path / "one.tif", tmp_path / "one.tiff"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": []}, r"^cells\.segment\.channels: none, but .* has 2 channels; name them in order"),
        ({"channels": ["nuclei"]}, r"^cells\.segment\.channels: nuclei, but .* has 2 channels"),
        ({"channels": ["dapi", "gfp"]}, r"^cells\.segment\.channels: dapi, gfp, but the model takes nuclei"),
        ({"calibration": None}, r"^cells\.segment\.calibration: not given, but the model works at 0\.65 µm per pixel"),
        ({"images": []}, r"^cells\.segment\.images: nothing to segment"),
        ({"images": ["nowhere.tif"]}, r"^cells\.segment\.images: nowhere\.tif: no such file"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    place: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    made_up(tmp_path / "one.tif")
    with pytest.raises(TomoscoutError, match=message) as error:
        segment(place, tmp_path, **{"images": [tmp_path / "one.tif"], **options})
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("one_*"))


def test_channels_are_found_by_name_in_any_order(place: Path, tmp_path: Path) -> None:
    made_up(tmp_path / "one.tif")
    image = read_image(tmp_path / "one.tif", 2)
    write_image(tmp_path / "turned.tif", image[::-1].copy(), CALIBRATION)
    write_image(tmp_path / "alone.tif", image[:1], CALIBRATION)
    labels = []
    for name, channels in (("one", CHANNELS), ("turned", ["Cytoplasm", "NUCLEI"]), ("alone", [])):
        segment(place, tmp_path, [tmp_path / f"{name}.tif"], channels=channels)
        labels.append(read_labels(tmp_path / f"{name}_cells.tif", 2))
    np.testing.assert_array_equal(labels[0], labels[1])
    np.testing.assert_array_equal(labels[0], labels[2])


def test_by_tiles_it_finds_the_same_as_at_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_image((230, 200), np.random.default_rng(3), cells=60, radius=9)
    model = AppliedModel(place / "trained", CPU)
    at_once = model.labels(made.image, [0], CALIBRATION)
    monkeypatch.setitem(applied.TILES, 2, (96, 96))
    tiled = model.labels(made.image, [0], CALIBRATION)
    assert at_once.max() > 20
    assert ((at_once > 0) == (tiled > 0)).mean() > 0.95
    assert matches(tiled, at_once, 0.7) > 0.9 * at_once.max()
    assert matches(at_once, tiled, 0.7) > 0.9 * tiled.max()


@pytest.mark.parametrize("scale", [2, 3])
def test_in_images_of_smaller_pixels_objects_are_as_large_as_they_are(place: Path, tmp_path: Path, scale: int) -> None:
    annotated = made_up(tmp_path / "large.tif", scale=scale)
    found = segment(place, tmp_path, [tmp_path / "large.tif"], calibration=CALIBRATION / scale)
    labels = read_labels(tmp_path / "large_cells.tif", 2)
    assert labels.shape == annotated.shape
    assert matches(labels, annotated, 0.5) > 0.6 * annotated.max()
    sizes = [float(row["area_um2"]) for row in rows_of(Path(found["images"][0]["table"]))]
    true = np.bincount(annotated.ravel())[1:] * (CALIBRATION / scale) ** 2
    assert np.median(sizes) == pytest.approx(np.median(true), rel=0.35)


def test_in_images_of_larger_pixels_labels_have_no_gaps(place: Path) -> None:
    made = make_image((96, 112), np.random.default_rng(7), cells=14, radius=9)
    coarse = made.image[:, ::4, ::4]
    # This one finds many objects of a few pixels, of which the network sees four times as many along each side.
    labels = AppliedModel(place / "untrained", CPU).labels(coarse, [0], 4 * CALIBRATION)
    assert labels.max() > 20
    assert labels.shape == coarse.shape[1:] and labels.dtype == np.int32
    assert np.array_equal(np.unique(labels), np.arange(labels.max() + 1))


def test_an_image_of_nothing_has_no_objects(place: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "black.tif", np.zeros((2, 50, 60), np.uint16), CALIBRATION)
    found = segment(place, tmp_path, [tmp_path / "black.tif"])
    labels = read_labels(tmp_path / "black_cells.tif", 2)
    assert labels.shape == (50, 60)
    assert len(rows_of(tmp_path / "black_cells.csv")) == found["images"][0]["objects"] == labels.max()


def test_labels_as_ome_zarr_are_those_of_the_tiff(place: Path, tmp_path: Path) -> None:
    made_up(tmp_path / "one.tif")
    segment(place, tmp_path, [tmp_path / "one.tif"])
    tiff = read_labels(tmp_path / "one_cells.tif", 2)
    found = segment(place, tmp_path, [tmp_path / "one.tif"], format="zarr")
    assert found["images"][0]["labels"] == str(tmp_path / "one_cells.ome.zarr")
    np.testing.assert_array_equal(read_labels(tmp_path / "one_cells.ome.zarr", 2), tiff)
    assert segment(place, tmp_path, [tmp_path / "one.tif"], format="zarr") == found
