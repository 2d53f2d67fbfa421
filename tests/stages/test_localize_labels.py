"""Picks from a segmentation that somebody else has made: there is no model, no training, and no tomoscout before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from support.project import RADII, SHAPE, SmallProject, error_of, succeeded
from tomoscout.data.geometry import to_angstrom
from tomoscout.data.picks import Picks
from tomoscout.data.written import Segmentation
from tomoscout.machine.files import read_json
from tomoscout.options.names import Source
from tomoscout.plan.plan import Plan

LABELS = {entry["name"]: entry["label"] for entry in SmallProject.objects}
THEIRS = "predict:octopi/1"
SESSION = "predict-octopi-1"
CENTRES = {
    "ribosome": [(12.0, 10.0, 10.0), (12.0, 10.0, 19.0), (10.0, 24.0, 30.0)],
    "ferritin": [(5.0, 25.0, 8.0)],
    "proteasome": [],
}


def spheres(
    centres: dict[str, list[tuple[float, ...]]], scale: float = 1.0, shape: tuple[int, ...] = SHAPE
) -> np.ndarray:
    """Labels of copick in spheres of 0.75 radii; `scale`: voxels for each of 10 Å."""
    places = np.stack(np.indices(shape), axis=-1)
    labels = np.zeros(shape, dtype=np.uint8)
    for name, of_object in centres.items():
        for centre in of_object:
            inside = np.linalg.norm(places - np.array(centre) * scale, axis=-1) <= 0.75 * RADII[name] / 10 * scale
            labels[inside] = LABELS[name]
    return labels


@pytest.fixture
def small(tmp_path: Path) -> SmallProject:
    """A run with a tomogram and labels: two ribosomes that touch, a third, a ferritin; a membrane beside them."""
    project = SmallProject(tmp_path)
    project.add_run("one")
    labels = spheres(CENTRES)
    labels[22:, :, :] = LABELS["membrane"]
    add_labels(project, "one", labels)
    configure(project)
    return project


def add_labels(small: SmallProject, run: str, labels: np.ndarray, spacing: float = 10.0, source: str = THEIRS) -> None:
    """Write a multilabel segmentation, as another program would: without a stamp of tomoscout."""
    name, user, session = Source.parse(source)
    folder = small.overlay / "ExperimentRuns" / run / "Segmentations"
    path = folder / f"{spacing:.3f}_{user}_{session}_{name}-multilabel.zarr"
    group = zarr.open_group(str(path), mode="w")
    group.create_dataset("0", data=labels, chunks=(16, 16, 16), dimension_separator="/", write_empty_chunks=True)


def configure(small: SmallProject, **localize: object) -> None:
    small.configure(targets={}, localize={"segmentation": THEIRS, **localize})


def localize(small: SmallProject) -> dict:
    """Run the stage; returns the manifest of the run `one`."""
    succeeded(small.list_runs())
    output = small.folder / "results/localize" / SESSION / "batch-0000.json"
    succeeded(small.command("localize", "--batch", "0", "--output", output))
    return read_json(output.parent / "demo/one.json")


def failure(small: SmallProject) -> str:
    succeeded(small.list_runs())
    output = small.folder / "results/localize" / SESSION / "batch-0000.json"
    return error_of(small.command("localize", "--batch", "0", "--output", output))


def picks(small: SmallProject, name: str, run: str = "one") -> Picks:
    return small.project().read_picks(run, Source(name, "tomoscout", SESSION))


def counts(manifest: dict) -> dict[str, int]:
    return {name: facts["count"] for name, facts in manifest["picks"].items()}


def assert_at(found: Picks, centres: list[tuple[float, ...]], within: float = 10.0) -> None:
    expected = to_angstrom(np.array(centres), 10.0)
    assert len(found) == len(expected)
    distances = np.linalg.norm(found.positions[:, None] - expected[None], axis=2)
    assert distances.min(axis=0, initial=np.inf).max(initial=0) < within


def test_particles_are_at_their_centres(small: SmallProject) -> None:
    manifest = localize(small)
    assert counts(manifest) == {"ribosome": 3, "ferritin": 1, "proteasome": 0}
    assert manifest["segmentation"] == f"{THEIRS}@10.0?multilabel=true"
    for name, centres in CENTRES.items():
        assert_at(picks(small, name), centres, within=3.0)
    # Spheres of 0.75 radii: their volume over that of the object.
    assert picks(small, "ferritin").scores == pytest.approx([0.75**3], rel=0.1)
    # The two that touch belong to one component.
    assert sorted(picks(small, "ribosome").instances.tolist()) in ([1, 1, 2], [1, 2, 2])
    # Looked for and not found: an empty file.
    empty = small.overlay / f"ExperimentRuns/one/Picks/tomoscout_{SESSION}_proteasome.json"
    assert json.loads(empty.read_text())["points"] == []


def test_components_are_not_parted(small: SmallProject) -> None:
    configure(small, method={"ribosome": "components"})
    assert counts(localize(small)) == {"ribosome": 2, "ferritin": 1, "proteasome": 0}
    together = np.mean(CENTRES["ribosome"][:2], axis=0)
    assert_at(picks(small, "ribosome"), [tuple(together), CENTRES["ribosome"][2]])


def test_other_objects_options_and_sizes(small: SmallProject) -> None:
    configure(small, objects=["ferritin", "ribosome"], smallest={"ferritin": 0.9})
    assert counts(localize(small)) == {"ribosome": 3, "ferritin": 0}
    configure(small, objects=["ferritin"], smallest={"ferritin": 0.6}, largest=1.0)
    assert counts(localize(small)) == {"ferritin": 1}
    configure(small, border={"ribosome": 105.0})
    # The third ribosome is 95 Å from the end of x.
    assert counts(localize(small)) == {"ribosome": 2, "ferritin": 1, "proteasome": 0}


def test_labels_of_another_numbering(small: SmallProject) -> None:
    labels = np.zeros(SHAPE, dtype=np.uint16)
    labels[spheres(CENTRES) == LABELS["ribosome"]] = 300
    add_labels(small, "one", labels)
    configure(small, labels={"ribosome": 300}, objects=["ribosome"])
    assert counts(localize(small)) == {"ribosome": 3}
    configure(small, objects=["ribosome"])
    assert counts(localize(small)) == {"ribosome": 0}


def test_picks_outside_the_mask_are_dropped(small: SmallProject) -> None:
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[:, :, :15] = 1
    small.add_segmentation("one", "lamella:me/1", mask)
    configure(small, mask="lamella:me/1")
    assert counts(localize(small)) == {"ribosome": 1, "ferritin": 1, "proteasome": 0}
    assert_at(picks(small, "ribosome"), CENTRES["ribosome"][:1], within=3.0)
    # Another mask makes other picks, at a voxel spacing of its own.
    shutil.rmtree(small.overlay / "ExperimentRuns/one/Segmentations/10.000_me_1_lamella.zarr")
    coarse = np.ones(tuple(size // 2 for size in SHAPE), dtype=np.uint8)
    coarse[:, :7] = 0
    small.add_segmentation("one", "lamella:me/1", coarse, spacing=20.0)
    assert counts(localize(small)) == {"ribosome": 1, "ferritin": 1, "proteasome": 0}
    assert_at(picks(small, "ribosome"), CENTRES["ribosome"][2:], within=3.0)


def test_a_run_without_the_mask_is_named(small: SmallProject) -> None:
    configure(small, mask="lamella:me/1")
    assert (
        failure(small) == f"demo/one: localize.mask: no segmentation lamella:me/1; found: {THEIRS}@10.0?multilabel=true"
    )


def test_earlier_picks_go_where_nothing_is_found(small: SmallProject) -> None:
    localize(small)
    assert len(picks(small, "ribosome")) == 3
    add_labels(small, "one", np.zeros(SHAPE, dtype=np.uint8))
    assert counts(localize(small)) == {"ribosome": 0, "ferritin": 0, "proteasome": 0}
    assert len(picks(small, "ribosome")) == 0


def test_a_second_call_does_nothing_until_the_labels_change(small: SmallProject) -> None:
    localize(small)
    path = small.overlay / f"ExperimentRuns/one/Picks/tomoscout_{SESSION}_ribosome.json"
    before = path.stat().st_mtime_ns
    localize(small)
    assert path.stat().st_mtime_ns == before
    add_labels(small, "one", spheres({"ribosome": CENTRES["ribosome"][:1]}))
    assert counts(localize(small))["ribosome"] == 1
    # And where another program takes an object for larger.
    values = json.loads(small.copick.read_text())
    values["pickable_objects"][0]["radius"] = 300.0
    small.copick.write_text(json.dumps(values))
    assert counts(localize(small))["ribosome"] == 0


def test_labels_at_another_voxel_spacing(small: SmallProject) -> None:
    shutil.rmtree(small.overlay / "ExperimentRuns/one/Segmentations")
    shape = tuple(2 * size for size in SHAPE)
    add_labels(small, "one", spheres(CENTRES, 2.0, shape), spacing=5.0)
    localize(small)
    for name, centres in CENTRES.items():
        assert_at(picks(small, name), centres, within=1.5)


def test_every_run_that_has_the_segmentation_is_localised(small: SmallProject) -> None:
    for run in ("two", "three", "four"):
        small.add_run(run)
    add_labels(small, "two", spheres({"ferritin": [(10, 10, 10), (10, 20, 30)]}))
    add_labels(small, "three", spheres({"ferritin": [(10, 10, 10)]}))
    configure(small)
    small.configure(targets={}, split={"exclude": ["three"]}, localize={"segmentation": THEIRS})
    localize(small)
    assert [record.run for record in Plan(small.config, small.refresh()).localized] == ["one", "two"]
    assert len(picks(small, "ferritin", "two")) == 2
    small.configure(targets={}, segment={"runs": ["two", "four"]}, localize={"segmentation": THEIRS})
    assert failure(small) == f"segment.runs: demo/four has no multilabel segmentation {THEIRS}"


def test_picks_of_others_are_not_written_over(small: SmallProject) -> None:
    small.add_picks("one", f"ribosome:tomoscout/{SESSION}", [(1, 2, 3)])
    assert f"picks ribosome:tomoscout/{SESSION}: there already, and not written by tomoscout" in failure(small)
    assert picks(small, "ribosome").positions.tolist() == [[1, 2, 3]]


def test_a_volume_is_read_slab_by_slab(small: SmallProject, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = localize(small)["picks"]
    shutil.rmtree(small.folder / "results/localize")
    for planes in (1, 5, 8, 24):
        monkeypatch.setattr("tomoscout.stages.localize.LARGEST_CHUNK", planes)
        assert localize(small)["picks"] == expected
        shutil.rmtree(small.folder / "results/localize")


def test_what_cannot_be_used_is_said_in_a_line(small: SmallProject) -> None:
    configure(small, segmentation="nothing:me/1")
    there = f"{THEIRS}@10.0?multilabel=true"
    message = f"localize.segmentation: no multilabel segmentation nothing:me/1 in any run; found: {there}"
    assert failure(small) == message
    for option, value in (("objects", ["virus"]), ("smallest", {"virus": 0.3}), ("labels", {"virus": 3})):
        configure(small, **{option: value})
        message = f"localize.{option}: no pickable particle with a label and a radius is 'virus'; there are "
        assert failure(small) == message + "ribosome, ferritin, proteasome"
    configure(small, labels={"ribosome": LABELS["ferritin"]})
    assert failure(small) == (
        f"{small.copick}: objects 'ribosome' and 'ferritin' have one label, 1; expected two (localize.labels)"
    )
    configure(small)
    add_labels(small, "one", spheres(CENTRES).astype(np.float32))
    assert failure(small) == f"demo/one: segmentation {there}: holds float32, expected whole numbers"
    [chunk, *_] = sorted((small.overlay / "ExperimentRuns/one/Segmentations").glob("*/0/*/*/*"))
    add_labels(small, "one", spheres(CENTRES))
    chunk.unlink()
    assert f"demo/one: segmentation {there}: truncated: " in failure(small)
    # Some writers leave empty chunks out.
    small.configure(targets={"allow_missing_chunks": True}, localize={"segmentation": THEIRS})
    assert counts(localize(small))["ferritin"] == 1


def test_without_a_segmentation_a_model_is_needed(small: SmallProject) -> None:
    small.configure()
    succeeded(small.list_runs())
    result = small.command("localize", "--batch", "0", "--output", small.folder / "x.json")
    assert result.exit_code == 2
    assert "--model and --segmented are needed without localize.segmentation" in result.stderr


def test_the_segmentation_itself_stays_as_it_is(small: SmallProject) -> None:
    project, wanted = small.project(), Segmentation("predict", "octopi", "1", 10.0, True)
    before = project.digest_written("one", wanted)
    localize(small)
    assert small.project().digest_written("one", wanted) == before
