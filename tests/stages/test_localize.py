"""The localisation stage on a small trained model."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import copick
import numpy as np
import pytest
from scipy import ndimage

from support.training import Workspace, trained
from tomoscout.data.picks import Picks
from tomoscout.data.project import Project
from tomoscout.data.written import Probabilities, Segmentation
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import digest_folder, read_json
from tomoscout.models.folder import save_weights
from tomoscout.networks import build_network
from tomoscout.options.config import Config
from tomoscout.options.names import Source
from tomoscout.plan.plan import Plan
from tomoscout.stages.localize import run_localize, searches_of
from tomoscout.stages.segment import run_segment
from tomoscout.tasks.picking.decoding import locate_picks
from tomoscout.tasks.picking.model import PickingModel

URI = "wbp@20.0"
PROBABILITIES = Probabilities(URI, "tomoscout-unet")
RUN = "phantom-003"
LOW = {"threshold": 0.06}


@functools.cache
def segmented(base: Path) -> Workspace:
    """Trained and segmented; shared, so not to be changed."""
    workspace = trained(base).copy(base.resolve() / "segmented")
    config = workspace.configure()
    run_segment(
        Plan(config, workspace.records()), [workspace.model], 0, workspace.segmented / "batch-0.json", threads=1
    )
    return workspace


@pytest.fixture
def workspace(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Workspace:
    return segmented(tmp_path_factory.getbasetemp()).copy(tmp_path / "workspace")


def localize(workspace: Workspace, **sections: object) -> Config:
    config = workspace.configure(**{"localize": LOW, **sections})
    output = workspace.localized / "batch-0.json"
    run_localize(Plan(config, workspace.records()), [workspace.model], workspace.segmented, 0, output)
    return config


def manifest(workspace: Workspace, run: str = RUN) -> dict:
    return read_json(workspace.localized / "phantom" / f"{run}.json")


def picks_path(workspace: Workspace, name: str, run: str = RUN) -> Path:
    return workspace.folder / "phantom/ExperimentRuns" / run / "Picks" / f"tomoscout_unet_{name}.json"


def test_picks_are_the_peaks_of_the_probabilities(workspace: Workspace) -> None:
    localize(workspace)
    model, project = PickingModel.read(workspace.model), workspace.project()
    particles = [entry.name for entry in model.classes if entry.is_particle]
    for run in ("phantom-002", RUN):
        probabilities = project.read_probabilities(run, PROBABILITIES)
        expected = locate_picks(probabilities, model.classes, 20.0, model.picking, dict.fromkeys(particles, 0.06))
        facts = manifest(workspace, run)
        assert list(facts["picks"]) == sorted(particles)
        for name in particles:
            picks = project.read_picks(run, Source(name, "tomoscout", "unet"))
            np.testing.assert_allclose(picks.positions, expected[name].positions)
            np.testing.assert_allclose(picks.scores, expected[name].scores)
            assert (picks.scores >= 0.06).all()
            source = Source(name, "tomoscout", "unet")
            count, value, _ = project.find_picks(run, source)
            assert facts["picks"][name] == {"source": str(source), "count": count, "digest": value}
    assert sum(facts["count"] for facts in manifest(workspace)["picks"].values()) > 5
    assert list(read_json(workspace.localized / "batch-0.json")["runs"]) == [f"phantom/phantom-00{n}" for n in (2, 3)]


def test_copick_reads_the_picks(workspace: Workspace) -> None:
    localize(workspace)
    run = copick.from_file(str(workspace.folder / "phantom/copick.json")).get_run(RUN)
    (entry,) = run.get_picks(object_name="ribosome", user_id="tomoscout", session_id="unet")
    expected = workspace.project().read_picks(RUN, Source("ribosome", "tomoscout", "unet"))
    assert len(entry.points) == len(expected) > 0
    for point, position, score in zip(entry.points, expected.positions, expected.scores, strict=True):
        assert [point.location.x, point.location.y, point.location.z] == pytest.approx(position)
        assert point.score == pytest.approx(score)
        # Inside the tomogram of 48 × 48 × 24 voxels of 20 Å.
        assert (position >= -10).all()
        assert (position < [950, 950, 470]).all()


def test_where_nothing_is_found_earlier_picks_go(workspace: Workspace) -> None:
    localize(workspace)
    before = manifest(workspace)["picks"]
    assert before["ribosome"]["count"] > 0
    localize(workspace, localize={"threshold": 1.0})
    project = workspace.project()
    for name in before:
        assert manifest(workspace)["picks"][name]["count"] == 0
        assert len(project.read_picks(RUN, Source(name, "tomoscout", "unet"))) == 0
        # There, and empty: looked for and not found.
        assert json.loads(picks_path(workspace, name).read_text())["points"] == []


def test_picks_of_others_stay(workspace: Workspace) -> None:
    project = workspace.project()
    mine = Source("ribosome", "me", "unet")
    project.write_picks(RUN, mine, Picks.at(np.array([[100.0, 200.0, 300.0]])))
    truth = len(project.read_picks(RUN, Source("ribosome", "phantom", "0")))
    localize(workspace)
    project = workspace.project()
    assert project.read_picks(RUN, mine).positions.tolist() == [[100, 200, 300]]
    assert len(project.read_picks(RUN, Source("ribosome", "phantom", "0"))) == truth > 0


def test_a_second_call_does_nothing(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    localize(workspace)
    before = picks_path(workspace, "ribosome").stat().st_mtime_ns
    folder = digest_folder(workspace.localized)
    capsys.readouterr()
    localize(workspace)
    assert picks_path(workspace, "ribosome").stat().st_mtime_ns == before
    assert digest_folder(workspace.localized) == folder
    assert capsys.readouterr().err == f"phantom/phantom-002: up to date\nphantom/{RUN}: up to date\n"


def test_lost_picks_are_made_again(workspace: Workspace) -> None:
    localize(workspace)
    expected = picks_path(workspace, "ribosome").read_bytes()
    other = picks_path(workspace, "ribosome", "phantom-002").stat().st_mtime_ns
    picks_path(workspace, "ribosome").unlink()
    localize(workspace)
    assert picks_path(workspace, "ribosome").read_bytes() == expected
    assert picks_path(workspace, "ribosome", "phantom-002").stat().st_mtime_ns == other


def test_thresholds_of_the_config_go_before_those_of_the_model(workspace: Workspace) -> None:
    model = PickingModel.read(workspace.model)

    def thresholds(**options: object) -> dict[str, float]:
        searches = searches_of(workspace.configure(localize=options), model)
        return {name: search.threshold for name, search in searches.items()}

    assert thresholds() == model.thresholds
    assert thresholds(threshold=0.25) == dict.fromkeys(model.thresholds, 0.25)
    assert thresholds(threshold={"ribosome": 0.01}) == {**model.thresholds, "ribosome": 0.01}
    assert set(thresholds(threshold=0).values()) == {0.0}
    # Those of the model are of smoothed peaks.
    assert thresholds(method={"ribosome": "components"}) == {**model.thresholds, "ribosome": 0.5}


def test_each_object_has_its_own_threshold(workspace: Workspace) -> None:
    localize(workspace)
    counts = {name: facts["count"] for name, facts in manifest(workspace)["picks"].items()}
    scores = workspace.project().read_picks(RUN, Source("ribosome", "tomoscout", "unet")).scores
    assert len(scores) > 1
    between = float(np.mean(np.sort(scores)[:2]))
    thresholds = dict.fromkeys(counts, 0.06) | {"ribosome": between}
    localize(workspace, localize={"threshold": thresholds})
    after = {name: facts["count"] for name, facts in manifest(workspace)["picks"].items()}
    assert after == {**counts, "ribosome": int((scores >= between).sum())}
    assert after["ribosome"] < counts["ribosome"]
    assert manifest(workspace)["thresholds"] == thresholds


@pytest.mark.parametrize("name", ["nucleosome", "membrane"])
def test_a_threshold_of_an_object_the_model_does_not_find_is_refused(workspace: Workspace, name: str) -> None:
    with pytest.raises(TomoscoutError, match=rf"localize\.threshold: the model finds no '{name}'; it finds ribosome,"):
        localize(workspace, localize={"threshold": {name: 0.5}})


def test_separation_of_the_config_goes_before_that_of_the_model(workspace: Workspace) -> None:
    localize(workspace, localize={**LOW, "separation": 4.0})
    project, model = workspace.project(), PickingModel.read(workspace.model)
    counted = 0
    for entry in model.classes:
        if entry.radius is None:
            continue
        positions = project.read_picks(RUN, Source(entry.name, "tomoscout", "unet")).positions
        distances = np.linalg.norm(positions[:, None] - positions[None], axis=2)
        apart = distances[~np.eye(len(positions), dtype=bool)]
        assert (apart >= 4 * entry.radius - 1e-6).all()
        counted += len(apart)
    assert counted


def test_probabilities_are_removed_where_they_are_not_kept(workspace: Workspace) -> None:
    localize(workspace, segment={"keep_probabilities": False})
    project = workspace.project()
    assert not any(project.made_from(run, PROBABILITIES) for run in ("phantom-002", RUN))
    assert not list(workspace.folder.glob("phantom/ExperimentRuns/*/VoxelSpacing*/*_features.zarr"))
    assert picks_path(workspace, "ribosome").exists()
    # Done and up to date without them; another threshold needs them again.
    localize(workspace, segment={"keep_probabilities": False})
    with pytest.raises(TomoscoutError, match=rf"{RUN[:-1]}2: probabilities .* is not there; run the segment stage"):
        localize(workspace, localize={"threshold": 0.5}, segment={"keep_probabilities": False})


def test_probabilities_are_kept_by_default(workspace: Workspace) -> None:
    localize(workspace)
    assert workspace.project().made_from(RUN, PROBABILITIES)


def test_probabilities_of_another_model_are_refused(workspace: Workspace) -> None:
    model = PickingModel.read(workspace.model)
    weights = save_weights(workspace.model, build_network(model.network, len(model.classes) + 1).state_dict())
    replace(model, weights_digest=weights).write(workspace.model)
    with pytest.raises(TomoscoutError, match=r"phantom/phantom-002: its probabilities are not of .*models/unet; run"):
        localize(workspace)
    assert not (workspace.localized / "batch-0.json").exists()


def test_a_run_that_is_not_segmented_is_named(workspace: Workspace) -> None:
    with pytest.raises(TomoscoutError, match=r"phantom-000\.json: no manifest; phantom/phantom-000 has not been"):
        localize(workspace, segment={"runs": None})


def test_picks_go_where_the_config_says(workspace: Workspace) -> None:
    config = workspace.configure(localize={"user": "me", "session": "second"})
    run_segment(
        Plan(config, workspace.records()), [workspace.model], 0, workspace.segmented / "batch-0.json", threads=1
    )
    localize(workspace, localize={**LOW, "user": "me", "session": "second"})
    assert len(workspace.project().read_picks(RUN, Source("ribosome", "me", "second"))) > 0
    assert not picks_path(workspace, "ribosome").exists()


@pytest.mark.parametrize("method", ["components", "watershed"])
def test_regions_of_the_probabilities(workspace: Workspace, method: str) -> None:
    """One object by its regions, in its own way; the others stay peaks."""
    localize(workspace)
    before = manifest(workspace)["picks"]
    options = {"method": {"ribosome": method}, "threshold": dict.fromkeys(before, 0.06) | {"ribosome": 0.1}}
    localize(workspace, localize={**options, "smallest": {"ribosome": 0.0}})
    after = manifest(workspace)["picks"]
    assert {name: facts for name, facts in after.items() if name != "ribosome"} == {
        name: facts for name, facts in before.items() if name != "ribosome"
    }
    project, [entry] = workspace.project(), [e for e in PickingModel.read(workspace.model).classes if e.label == 1]
    assert entry.name == "ribosome"
    probability = project.read_probabilities(RUN, PROBABILITIES)[0]
    regions, count = ndimage.label(probability / 255 >= 0.1)
    picks = project.read_picks(RUN, Source("ribosome", "tomoscout", "unet"))
    assert set(picks.instances.tolist()) == set(range(1, count + 1))
    if method == "components":
        means = ndimage.mean(probability, regions, picks.instances) / 255
        np.testing.assert_allclose(picks.scores, means)
    else:
        assert len(picks) >= count
    assert (picks.scores >= 0.1).all()


def test_some_objects_alone(workspace: Workspace) -> None:
    localize(workspace)
    before = manifest(workspace)["picks"]
    other = next(name for name in before if name != "ribosome")
    written = picks_path(workspace, other).stat().st_mtime_ns
    config = localize(workspace, localize={**LOW, "objects": ["ribosome"]})
    assert list(manifest(workspace)["picks"]) == ["ribosome"]
    assert manifest(workspace)["picks"]["ribosome"] == before["ribosome"]
    assert picks_path(workspace, other).stat().st_mtime_ns == written
    # The others are not scored: their earlier picks are not of this configuration.
    assert [entry.name for entry in Plan(config, workspace.records()).scored.classes] == ["ribosome"]


def test_an_object_that_is_not_looked_for_is_named(workspace: Workspace) -> None:
    for options in ({"objects": ["nucleosome"]}, {"method": {"nucleosome": "watershed"}}):
        with pytest.raises(TomoscoutError, match=r"localize\.\w+: the model finds no 'nucleosome'; it finds ribosome,"):
            localize(workspace, localize=options)


def test_picks_of_a_model_in_a_mask_and_away_from_the_ends(workspace: Workspace) -> None:
    localize(workspace)
    project, source = workspace.project(), Source("ribosome", "tomoscout", "unet")
    before = project.read_picks(RUN, source)
    mask = np.zeros((24, 48, 48), dtype=np.uint8)
    mask[:, :, : int(np.median(before.positions[:, 0]) / 20)] = 1
    for run in ("phantom-002", RUN):
        project.write_segmentation(run, Segmentation("lamella", "me", "1", 20.0, False), mask, {})
    localize(workspace, localize={**LOW, "mask": "lamella:me/1"})
    found = workspace.project().read_picks(RUN, source)
    voxels = np.floor(before.positions[:, ::-1] / 20 + 0.5).astype(int)
    inside = mask[tuple(voxels.T)] == 1
    assert 0 < inside.sum() < len(before)
    np.testing.assert_array_equal(found.positions, before.positions[inside])
    localize(workspace, localize={**LOW, "border": 150.0})
    found = workspace.project().read_picks(RUN, source)
    # The volume ends half a voxel beyond the outermost centres.
    room = np.minimum(before.positions + 10, np.array([960, 960, 480]) - 10 - before.positions).min(axis=1)
    assert 0 < (room >= 150).sum() < len(before)
    np.testing.assert_array_equal(found.positions, before.positions[room >= 150])


def test_one_class_is_read_at_a_time(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    read, held = Project.read_probabilities, []

    def watched(self: Project, run: str, wanted: Probabilities, label: int | None = None) -> np.ndarray:
        held.append(label)
        return read(self, run, wanted, label)

    monkeypatch.setattr(Project, "read_probabilities", watched)
    localize(workspace)
    particles = [entry.label for entry in PickingModel.read(workspace.model).classes if entry.is_particle]
    # Of two runs; the membrane, which is not localised, is never read.
    assert held == 2 * particles
    assert len(PickingModel.read(workspace.model).classes) > len(particles)
