"""The list of runs: round trips, batches that stay, and what makes a run be read again."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import copick
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from support.project import SHAPE, SmallProject, error_of, succeeded
from tomoscout.data.inventory import COLUMNS, PickCount, RunRecord, find_runs, read_inventory
from tomoscout.data.inventory_refresh import read_fresh, refresh
from tomoscout.data.signatures import read_signatures
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import write_table
from tomoscout.options.names import Source
from tomoscout.plan.fingerprints import segment_fingerprint, training_fingerprint
from tomoscout.plan.plan import Plan

PLACE = (100.0, 100.0, 100.0)

# What copick allows in names, and what a configuration can say.
names = st.text("abcXYZ019-.+=#&", min_size=1, max_size=6)
digests = st.text("0123456789abcdef", min_size=4, max_size=4)
uris = st.builds(lambda name, spacing: f"{name}@{spacing}", names, st.sampled_from([10.0, 13.48]))
records = st.builds(
    RunRecord,
    project=names,
    run=st.text("abc 019-_.", min_size=1, max_size=8),
    batch=st.integers(0, 9999),
    tomograms=st.dictionaries(uris, st.tuples(*[st.integers(1, 2000)] * 3), max_size=3),
    picks=st.dictionaries(
        st.builds(Source, names, names, names), st.builds(PickCount, st.integers(0, 10**6), digests), max_size=3
    ),
    segmentations=st.dictionaries(
        st.builds("{}:{}/{}@10.0{}".format, names, names, names, st.sampled_from(["", "?multilabel=true"])),
        digests,
        max_size=3,
    ),
    signature=digests | st.just("config:abc"),
    unreadable=st.dictionaries(uris, st.text(max_size=9), max_size=2),
    doubtful=st.dictionaries(names, st.text("\t\n'\",ä", max_size=9), max_size=2),
).flatmap(
    lambda record: st.builds(
        dataclasses.replace, st.just(record), contents=st.fixed_dictionaries(dict.fromkeys(record.tomograms, digests))
    )
)


@given(st.lists(records, max_size=4))
@settings(deadline=None, max_examples=50, derandomize=True)
def test_records_come_back(tmp_path_factory: pytest.TempPathFactory, rows: list[RunRecord]) -> None:
    path = tmp_path_factory.getbasetemp() / "inventory.tsv"
    write_table(path, COLUMNS, (record.to_row() for record in rows))
    assert read_inventory(path) == rows


def fill(small: SmallProject, *runs: str) -> None:
    for run in runs:
        small.add_run(run)
        small.add_picks(run, "ribosome:expert/0", [PLACE])


def test_what_a_run_holds(small: SmallProject) -> None:
    small.add_run("a")
    small.add_run("a", uri="denoised@10.0", shape=(20, 30, 40))
    small.add_picks("a", "ribosome:expert/0", [PLACE, PLACE])
    small.add_picks("a", "ferritin:student/7", [])
    small.add_segmentation("a", "membrane:expert/0", np.ones(SHAPE))
    [record] = small.refresh()
    assert (record.project, record.run, record.key, record.batch) == ("demo", "a", "demo/a", 0)
    assert record.tomograms == {"wbp@10.0": SHAPE, "denoised@10.0": (20, 30, 40)}
    counts = {str(source): picks.total for source, picks in record.picks.items()}
    assert counts == {"ribosome:expert/0": 2, "ferritin:student/7": 0}
    assert list(record.segmentations) == ["membrane:expert/0@10.0"]
    assert read_inventory(small.inventory) == [record]


def test_equal_projects_give_equal_bytes(small: SmallProject) -> None:
    fill(small, "b", "a")
    small.refresh()
    first = small.inventory.read_bytes()
    small.refresh()
    assert small.inventory.read_bytes() == first
    small.inventory.unlink()
    small.refresh()
    assert small.inventory.read_bytes() == first


# Batches


def batches(small: SmallProject) -> dict[str, int]:
    return {record.run: record.batch for record in small.refresh()}


def test_runs_keep_their_batch_when_others_come_and_go(small: SmallProject) -> None:
    small.configure(runs_per_job=2)
    fill(small, "b", "d", "f")
    assert batches(small) == {"b": 0, "d": 0, "f": 1}
    fill(small, "a", "c", "e")
    assert batches(small) == {"b": 0, "d": 0, "f": 1, "a": 2, "c": 2, "e": 3}
    shutil.rmtree(small.overlay / "ExperimentRuns" / "d")
    small.configure(runs_per_job=50)
    fill(small, "g")
    assert batches(small) == {"b": 0, "f": 1, "a": 2, "c": 2, "e": 3, "g": 4}


def test_a_run_that_changes_keeps_its_batch(small: SmallProject) -> None:
    small.configure(runs_per_job=1)
    fill(small, "a", "b")
    before = batches(small)
    small.add_picks("a", "ribosome:student/0", [PLACE])
    assert batches(small) == before == {"a": 0, "b": 1}


# Freshness


def fresh(small: SmallProject) -> bool:
    return read_fresh(small.inventory, small.config.projects) is not None


def test_an_untouched_project_is_fresh(small: SmallProject) -> None:
    assert not fresh(small)
    fill(small, "a", "b")
    assert not fresh(small)
    small.refresh()
    assert fresh(small)


def test_every_change_of_the_data_is_seen(small: SmallProject) -> None:
    fill(small, "a", "b")
    root = small.overlay / "ExperimentRuns" / "a"

    def rewrite_by_copick() -> None:
        [entry] = copick.from_file(str(small.copick)).get_run("a").get_picks("ferritin", "student", "0")
        entry.from_numpy(np.ones((3, 3)))

    changes = [
        lambda: small.add_picks("a", "ferritin:student/0", []),
        lambda: small.add_picks("a", "ferritin:student/0", [PLACE]),
        rewrite_by_copick,
        lambda: (root / "Picks" / "student_0_ferritin.json").unlink(),
        lambda: small.add_segmentation("a", "membrane:expert/0", np.ones(SHAPE)),
        lambda: small.add_segmentation("a", "membrane:expert/0", np.zeros(SHAPE)),
        lambda: shutil.rmtree(root / "Segmentations" / "10.000_expert_0_membrane.zarr"),
        lambda: small.add_run("a", uri="denoised@10.0"),
        lambda: small.add_run("a", uri="wbp@20.0", shape=(12, 16, 20)),
        lambda: small.add_run("c"),
        lambda: shutil.rmtree(small.overlay / "ExperimentRuns" / "c"),
    ]
    for number, change in enumerate(changes):
        small.refresh()
        assert fresh(small), number
        change()
        assert not fresh(small), number


def test_what_is_no_data_is_not_looked_at(small: SmallProject) -> None:
    fill(small, "a")
    small.refresh()
    (small.overlay / "ExperimentRuns" / "README.txt").write_text("about this project")
    (small.overlay / "ExperimentRuns" / ".hidden").mkdir()
    (small.overlay / "ExperimentRuns" / "a" / "Picks" / ".half-written.json").write_text("{")
    assert fresh(small)
    assert [record.run for record in small.refresh()] == ["a"]
    assert fresh(small)


def test_a_run_without_anything_is_a_run(small: SmallProject) -> None:
    fill(small, "a")
    (small.overlay / "ExperimentRuns" / "empty").mkdir()
    assert [(record.run, bool(record.tomograms)) for record in small.refresh()] == [("a", True), ("empty", False)]
    assert fresh(small)


def test_changed_picks_change_the_digest(small: SmallProject) -> None:
    fill(small, "a")
    source = Source("ribosome", "expert", "0")
    seen = []
    for positions in ([PLACE], [PLACE, PLACE], [(100.0, 100.0, 100.5)]):
        small.add_picks("a", "ribosome:expert/0", positions)
        [record] = small.refresh()
        seen.append(record.picks[source])
    assert [picks.total for picks in seen] == [1, 2, 1]
    assert len({picks.digest for picks in seen}) == 3


def test_only_runs_that_changed_are_read_again(small: SmallProject) -> None:
    fill(small, "a", "b")
    small.refresh()
    # A run that is not read again keeps what the list says of it, whatever that is.
    rows = [dataclasses.replace(record, tomograms={"made-up@1.0": (1, 1, 1)}) for record in small.refresh()]
    write_table(small.inventory, COLUMNS, (record.to_row() for record in rows))
    small.add_picks("b", "ribosome:student/0", [PLACE])
    assert [list(record.tomograms) for record in small.refresh()] == [["made-up@1.0"], ["wbp@10.0"]]
    everything = refresh(small.inventory, small.config.projects, 10, everything=True)
    assert [list(record.tomograms) for record in everything] == [["wbp@10.0"], ["wbp@10.0"]]


def test_targets_written_into_the_project_change_no_source(small: SmallProject) -> None:
    fill(small, "a")
    succeeded(small.make_targets())
    assert not fresh(small)
    [record] = small.refresh()
    assert list(record.segmentations) == ["targets:tomoscout/1@10.0?multilabel=true"]
    result = succeeded(small.make_targets())
    assert "demo/a: up to date" in result.stderr


# Several folders and projects


def test_static_and_overlay_are_looked_at_together(tmp_path: Path) -> None:
    small = SmallProject(tmp_path, static=True)
    fill(small, "a")
    small.refresh()
    assert fresh(small)
    entry = copick.from_file(str(small.copick)).get_run("a").new_picks("ribosome", "0", "student")
    entry.from_numpy(np.ones((3, 3)))
    assert not fresh(small)
    [record] = small.refresh()
    assert {str(source): picks.total for source, picks in record.picks.items()} == {
        "ribosome:expert/0": 1,
        "ribosome:student/0": 3,
    }
    small.add_picks("a", "ribosome:expert/0", [PLACE, PLACE])
    assert not fresh(small)


def test_two_projects(tmp_path: Path) -> None:
    first, second = SmallProject(tmp_path, "first"), SmallProject(tmp_path, "second")
    fill(first, "a", "b")
    fill(second, "a")
    projects = {"first": str(first.copick), "second": str(second.copick)}
    first.configure(projects=projects)
    assert [record.key for record in first.refresh()] == ["first/a", "first/b", "second/a"]
    assert fresh(first)
    first.configure(projects={"second": str(second.copick)})
    assert not fresh(first)
    assert [(record.key, record.batch) for record in first.refresh()] == [("second/a", 0)]


def test_a_project_kept_elsewhere_is_fresh_until_its_config_changes(small: SmallProject) -> None:
    small.write_copick_config(static_root="s3://bucket/project")
    assert list(read_signatures({"demo": str(small.copick)})) == ["demo/"]
    first = read_signatures({"demo": str(small.copick)})
    small.write_copick_config(static_root="s3://bucket/project", description="changed")
    assert read_signatures({"demo": str(small.copick)}) != first


# What cannot be used


def test_an_unreadable_tomogram_is_left_out_with_a_warning(small: SmallProject) -> None:
    folder = small.add_run("a")
    small.add_run("a", uri="denoised@10.0")
    (folder / "0" / ".zarray").write_text("{")
    result = succeeded(small.list_runs())
    assert "warning: demo/a: wbp@10.0 is left out: no readable zarr array: .zarray: " in result.stderr
    assert list(read_inventory(small.inventory)[0].tomograms) == ["denoised@10.0"]


def test_names_that_a_configuration_cannot_say_are_left_out_with_a_warning(small: SmallProject) -> None:
    fill(small, "a")
    small.add_run("a", uri="denoised@10.0")
    root = small.overlay / "ExperimentRuns" / "a"
    (root / "VoxelSpacing10.000" / "denoised.zarr").rename(root / "VoxelSpacing10.000" / "my denoised.zarr")
    for name in ("a b_0_ribosome.json", "a,b_0_ribosome.json"):
        shutil.copy(root / "Picks" / "expert_0_ribosome.json", root / "Picks" / name)
    membrane = small.add_segmentation("a", "membrane:expert/0", np.ones(SHAPE))
    membrane.rename(membrane.with_name("10.000_my expert_0_membrane.zarr"))
    result = succeeded(small.list_runs())
    [record] = read_inventory(small.inventory)
    assert list(record.tomograms) == ["wbp@10.0"]
    assert list(map(str, record.picks)) == ["ribosome:expert/0"]
    assert record.segmentations == {}
    warnings = [line for line in result.stderr.splitlines() if line.startswith("warning: demo/a: ")]
    assert len(warnings) == 4


@pytest.mark.parametrize("content", ["", "project\trun\n", "not a table at all", "a,b,c\n1,2,3\n"])
def test_a_file_that_is_no_inventory(tmp_path: Path, content: str) -> None:
    path = tmp_path / "inventory.tsv"
    path.write_text(content)
    with pytest.raises(TomoscoutError, match=f"^{path}: expected the columns project, run, batch"):
        read_inventory(path)


@pytest.mark.parametrize("row", ["demo\ta", "demo\ta\tfirst\t\t\t\t", "demo\ta\t0\twbp@10.0=1x2\t\t\t"])
def test_a_row_that_cannot_be_read(tmp_path: Path, row: str) -> None:
    path = tmp_path / "inventory.tsv"
    path.write_text("\t".join(COLUMNS) + "\n" + row + "\n")
    with pytest.raises(TomoscoutError, match=f"^{path}: a row cannot be read"):
        read_inventory(path)


def test_no_inventory(small: SmallProject) -> None:
    message = error_of(small.command("split", "--output", small.folder / "split.json"))
    assert message == f"{small.inventory}: no inventory; run `tomoscout inventory` or snakemake first"


# Naming runs


def record(project: str, run: str) -> RunRecord:
    return RunRecord(project, run, 0, {}, {}, {}, "")


def test_runs_by_name() -> None:
    rows = [record("p", "a"), record("p", "b"), record("q", "b"), record("q", "c")]
    assert find_runs(rows, ["c", "p/b", "a"], "here") == [rows[3], rows[1], rows[0]]
    assert find_runs(rows, [], "here") == []


def test_runs_that_are_not_there_or_in_two_projects() -> None:
    rows = [record("p", "a"), record("p", "b"), record("q", "b")]
    with pytest.raises(TomoscoutError, match=r"^here: run 'b' is in several projects; write p/b or q/b$"):
        find_runs(rows, ["a", "b"], "here")
    with pytest.raises(TomoscoutError, match=r"^here: no run 'z' in the projects; there are 3 runs, such as a, b, b$"):
        find_runs(rows, ["z"], "here")


# What is written anew under its old name


def contents(small: SmallProject, run: str = "a") -> dict[str, str]:
    return next(record.contents for record in small.refresh() if record.run == run)


@pytest.mark.parametrize("how", ["in place", "by copick", "by a folder"])
def test_a_tomogram_written_anew_is_seen(small: SmallProject, how: str) -> None:
    folder = small.add_run("a")
    small.add_run("a", uri="denoised@10.0")
    before = contents(small)
    assert fresh(small)
    volume = -small.project().read_tomogram("a", "wbp@10.0")
    if how == "in place":
        zarr.open_array(str(folder / "0"), mode="r+")[:] = volume
    elif how == "by copick":
        run = copick.from_file(str(small.copick)).get_run("a")
        run.get_voxel_spacing(10.0).get_tomograms("wbp")[0].from_numpy(volume)
    else:
        small.write_tomogram("a", volume)
    assert not fresh(small)
    after = contents(small)
    assert after["denoised@10.0"] == before["denoised@10.0"]
    assert after["wbp@10.0"] != before["wbp@10.0"]


def test_a_project_that_is_copied_holds_the_same(small: SmallProject, tmp_path: Path) -> None:
    fill(small, "a")
    small.add_segmentation("a", "membrane:expert/0", np.ones(SHAPE))
    [before] = small.refresh()
    shutil.copytree(small.overlay, tmp_path / "elsewhere", copy_function=shutil.copy)
    small.write_copick_config(overlay_root=f"local://{tmp_path / 'elsewhere'}")
    [after] = small.refresh()
    assert after.signature != before.signature
    assert dataclasses.replace(after, signature=before.signature) == before


def test_what_a_changed_tomogram_makes_again(small: SmallProject) -> None:
    fill(small, "a", "b", "c")
    small.configure(split={"train": ["a"], "validate": ["b"]})

    def fingerprints() -> list[str]:
        plan = Plan(small.config, small.refresh())
        segmented = [segment_fingerprint(plan, record) for record in plan.records]
        return [training_fingerprint(plan, plan.fold()), *segmented, *plan.targets.inputs.values()]

    before = fingerprints()
    small.write_tomogram("a", np.random.default_rng(7).normal(size=SHAPE).astype(np.float32))
    changed = [old != new for old, new in zip(before, fingerprints(), strict=True)]
    # The training and the segmentation of that run; its target does not depend on the voxels.
    assert changed == [True, True, False, False, False, False, False]
    before = fingerprints()
    small.write_tomogram("c", np.random.default_rng(8).normal(size=SHAPE).astype(np.float32))
    changed = [old != new for old, new in zip(before, fingerprints(), strict=True)]
    assert changed == [False, False, False, True, False, False, False]


# Units


def in_voxels(count: int) -> list[tuple[float, ...]]:
    return [tuple(place) for place in np.random.default_rng(0).uniform(1, 23, (count, 3)).tolist()]


def test_picks_in_voxels_are_told(small: SmallProject) -> None:
    fill(small, "a", "b")
    for run in ("a", "b"):
        small.add_picks(run, "ribosome:expert/0", in_voxels(5))
    expected = "picks ribosome:expert/0: all 5 lie in one corner of the tomogram"
    assert f"warning: demo/a: {expected}" in succeeded(small.list_runs()).stderr
    records = small.refresh()
    plan = Plan(small.config, records).targets
    [warning] = [warning for warning in plan.warnings if expected in warning]
    assert warning.endswith("(demo/a, demo/b)")
    assert f"warning: demo/a: {expected}" in succeeded(small.make_targets()).stderr
    # Kept, and told again where nothing is read again.
    assert read_inventory(small.inventory) == records


def test_picks_all_over_a_tomogram_or_a_few_in_a_corner_are_not_doubted(small: SmallProject) -> None:
    small.add_run("a")
    small.add_picks("a", "ribosome:expert/0", [*in_voxels(20), (200.0, 200.0, 100.0)])
    small.add_picks("a", "ferritin:expert/0", in_voxels(1))
    [record] = small.refresh()
    assert record.doubtful == {}


@pytest.mark.parametrize("unit", ["pixel", "nanometer", "voxel", 5])
def test_picks_of_another_unit_are_refused_where_they_are_used(small: SmallProject, unit: object) -> None:
    fill(small, "a")
    path = small.add_picks("a", "ferritin:expert/0", [PLACE])
    path.write_text(json.dumps(json.loads(path.read_text()) | {"unit": unit}))
    small.refresh()
    assert Plan(small.config, small.refresh()).targets.classes[0].name == "ribosome"
    small.configure(targets={"picks": ["ferritin:expert/0", "ribosome"]})
    with pytest.raises(TomoscoutError, match=f"^targets.picks: .*its unit is {unit!r}, expected 'angstrom'"):
        _ = Plan(small.config, small.refresh()).targets


# One thing under two names


def test_one_project_under_two_names_is_refused(small: SmallProject) -> None:
    fill(small, "a")
    with pytest.raises(TomoscoutError, match=r"^projects one and two share .*demo.json: the same data would be in two"):
        read_signatures({"one": str(small.copick), "two": str(small.copick)})
    other = small.folder / "other.json"
    shutil.copy(small.copick, other)
    with pytest.raises(TomoscoutError, match=r"^projects one and two share .*demo-overlay: the same data"):
        read_signatures({"one": str(small.copick), "two": str(other)})
    linked = small.folder / "linked"
    linked.symlink_to(small.overlay)
    other.write_text(small.copick.read_text().replace(str(small.overlay), str(linked)))
    with pytest.raises(TomoscoutError, match=r"^projects one and two share "):
        read_signatures({"one": str(small.copick), "two": str(other)})


def test_one_run_under_two_names_is_refused(small: SmallProject) -> None:
    fill(small, "a", "b")
    runs = small.overlay / "ExperimentRuns"
    (runs / "0-a").symlink_to(runs / "a")
    with pytest.raises(TomoscoutError, match=r"^project demo: runs a and 0-a share .*/ExperimentRuns/a: the same data"):
        read_signatures(small.config.projects)


def test_runs_that_are_links_elsewhere_are_runs(small: SmallProject, tmp_path: Path) -> None:
    fill(small, "a", "b")
    runs = small.overlay / "ExperimentRuns"
    (runs / "b").rename(tmp_path / "moved")
    (runs / "b").symlink_to(tmp_path / "moved")
    assert [record.run for record in small.refresh()] == ["a", "b"]


# Odd things


def test_odd_files_and_folders_do_not_stop_anything(small: SmallProject) -> None:
    fill(small, "a")
    run = small.overlay / "ExperimentRuns" / "a"
    (run / "VoxelSpacing").mkdir()
    (run / "VoxelSpacing20.000").write_text("a file")
    (run / "Picks" / "nowhere_0_ribosome.json").symlink_to(run / "gone")
    (run / "Picks" / "folder_0_ribosome.json").mkdir()
    (run / "Segmentations").write_text("a file")
    result = succeeded(small.list_runs())
    assert "VoxelSpacing is left out: a name that copick cannot read" in result.stderr
    assert "ribosome:folder/0 is left out: demo/a: " in result.stderr
    [record] = read_inventory(small.inventory)
    assert record.tomograms == {"wbp@10.0": SHAPE}
    assert [str(source) for source in record.picks] == ["ribosome:expert/0"]


def test_a_root_that_cannot_be_reached_is_named(small: SmallProject) -> None:
    small.write_copick_config(static_root="http://127.0.0.1:9/nothing", static_fs_args={})
    message = error_of(small.list_runs())
    assert message.startswith(f"project demo ({small.copick}): cannot be listed (")


def test_an_inventory_of_another_version_is_made_anew(small: SmallProject) -> None:
    fill(small, "a")
    small.refresh()
    small.inventory.write_text("project\trun\nold\ta\n")
    assert not fresh(small)
    assert "expected the columns project, run" in succeeded(small.list_runs()).stderr
    assert fresh(small)


def test_a_link_to_nowhere_in_a_volume_stops_nothing(small: SmallProject) -> None:
    fill(small, "a", "b")
    folder = small.add_run("a", uri="denoised@10.0")
    (folder / "0" / "note").symlink_to(folder / "gone")
    membrane = small.add_segmentation("a", "membrane:expert/0", np.ones(SHAPE))
    (membrane / "note").symlink_to(folder / "gone")
    succeeded(small.list_runs())
    record = read_inventory(small.inventory)[0]
    assert list(record.tomograms) == ["wbp@10.0"]
    assert sorted(record.unreadable) == ["denoised@10.0", "membrane:expert/0@10.0"]
    succeeded(small.make_targets())
