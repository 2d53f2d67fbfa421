"""Splits: every way to ask for one, and what holds for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from support.project import SmallProject, succeeded
from tomoscout.data.inventory import PickCount, RunRecord
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import read_json
from tomoscout.options.config import Config, parse_config
from tomoscout.options.names import Source
from tomoscout.plan.classes import TargetClass
from tomoscout.plan.folds import Fold
from tomoscout.plan.splits import SplitResult, chosen_fold, make_split
from tomoscout.plan.targets import TargetPlan

SOURCE = Source("ribosome", "expert", "0")
checked = settings(deadline=None, max_examples=80, derandomize=True)


def config(**split: Any) -> Config:
    return parse_config(
        {
            "projects": {"p": "copick.json"},
            "tomograms": ["wbp@10.0"],
            "targets": {"picks": [str(SOURCE)]},
            "split": split,
        },
        "my.yaml",
    )


def record(run: str, *, picks: int | None = 5, tomogram: str = "wbp@10.0", project: str = "p") -> RunRecord:
    counts = {} if picks is None else {SOURCE: PickCount(picks, "digest")}
    return RunRecord(project, run, 0, {tomogram: (8, 8, 8)}, counts, {}, "")


def plan(records: Sequence[RunRecord], options: Config) -> TargetPlan:
    """The plan of one class, as the inventory would give it."""
    annotated = frozenset(entry.key for entry in records if entry.picks)
    negatives = {f"p/{name}" for name in options.split.negatives}
    made = {r.key: "digest" for r in records if r.key in annotated | negatives and "wbp@10.0" in r.tomograms}
    return TargetPlan((TargetClass("ribosome", 1, 60.0, 48.0, (SOURCE,)),), made, annotated)


def split(records: Sequence[RunRecord], **options: Any) -> SplitResult:
    settings = config(**options)
    return make_split(settings, records, plan(records, settings))


def named(count: int, start: int = 0) -> list[RunRecord]:
    return [record(f"run-{number}") for number in range(start, start + count)]


def one(result: SplitResult) -> Fold:
    [fold] = result.folds
    return fold


def sizes(result: SplitResult) -> tuple[int, int, int]:
    fold = one(result)
    return len(fold.train), len(fold.validate), len(fold.test)


def keys(*runs: str) -> tuple[str, ...]:
    return tuple(f"p/{run}" for run in runs)


# What always holds

ratios = st.sampled_from(
    [0.8, 0.5, 0.95, "0.7,0.1", "0.7,0.2", "0.7,0.3", "0.05,0.05", [0.6, 0.2, 0.2], [0.7, 0.2, 0.1], [0.1, 0.8]]
)
seeds = st.integers(0, 1000)


def assert_sound(result: SplitResult, eligible: set[str], *, complete: bool = True) -> None:
    for fold in result.folds:
        everyone = fold.part("all")
        assert len(everyone) == len(set(everyone)), "parts are disjoint"
        assert set(everyone) <= eligible
        assert fold.train
        assert fold.validate
        if complete:
            assert set(everyone) == eligible


@given(st.integers(2, 40), ratios, seeds)
@checked
def test_parts_are_disjoint_and_cover_all(count: int, ratios: Any, seed: int) -> None:
    records = named(count)
    result = split(records, ratios=ratios, seed=seed)
    assert_sound(result, {entry.key for entry in records})
    assert result.excluded == {}
    assert split(records, ratios=ratios, seed=seed) == result
    assert split(list(reversed(records)), ratios=ratios, seed=seed) == result


@given(st.integers(5, 60), ratios, seeds)
@checked
def test_parts_have_the_sizes_asked_for(count: int, ratios: Any, seed: int) -> None:
    fractions = config(ratios=ratios).split.ratios
    wanted = [fractions[0], 1 - fractions[0], 0] if len(fractions) == 1 else [*fractions, 1 - sum(fractions)][:3]
    found = sizes(split(named(count), ratios=ratios, seed=seed))
    for size, share in zip(found, wanted, strict=True):
        assert abs(size - count * share) <= 1.5
    if wanted[2] < 1e-6:
        assert found[2] == 0


@given(st.integers(2, 12), st.integers(2, 12), seeds)
@checked
def test_folds_validate_every_run_once(count: int, folds: int, seed: int) -> None:
    assume(folds <= count)
    records = named(count)
    result = split(records, folds=folds, seed=seed)
    assert len(result.folds) == folds
    assert_sound(result, {entry.key for entry in records})
    assert sorted(key for fold in result.folds for key in fold.validate) == sorted(entry.key for entry in records)
    lengths = [len(fold.validate) for fold in result.folds]
    assert max(lengths) - min(lengths) <= 1


@given(st.lists(st.integers(0, 5), min_size=4, max_size=20), ratios, seeds, st.sampled_from([None, 2]))
@checked
def test_groups_are_never_divided(grids: list[int], ratios: Any, seed: int, folds: int | None) -> None:
    assume(len(set(grids)) >= 2)
    records = [record(f"grid{grid}-{number}") for number, grid in enumerate(grids)]
    how = {"folds": folds} if folds else {"ratios": ratios}
    result = split(records, group_pattern=r"^(grid\d+)-", seed=seed, **how)
    assert_sound(result, {entry.key for entry in records})
    for fold in result.folds:
        parts = {part: {key.split("-")[0] for key in fold.part(part)} for part in ("train", "validate", "test")}
        assert not parts["train"] & parts["validate"]
        assert not parts["test"] & (parts["train"] | parts["validate"])


@given(st.integers(4, 40), ratios, seeds, st.data())
@checked
def test_lists_are_kept_and_the_rest_is_divided(count: int, ratios: Any, seed: int, data: st.DataObject) -> None:
    records = named(count)
    runs = [entry.run for entry in records]
    part = data.draw(st.sampled_from(["train", "validate", "test"]))
    listed = data.draw(st.lists(st.sampled_from(runs), min_size=1, max_size=count - 2, unique=True))
    result = split(records, ratios=ratios, seed=seed, **{part: listed})
    assert_sound(result, {entry.key for entry in records}, complete=part != "test" or len(listed) < count)
    assert one(result).part(part) == tuple(sorted(keys(*listed)))


@given(st.integers(6, 40), ratios, seeds)
@checked
def test_a_new_run_moves_few_others(count: int, ratios: Any, seed: int) -> None:
    before = one(split(named(count), ratios=ratios, seed=seed))
    after = one(split(named(count + 1), ratios=ratios, seed=seed))
    assert moved(before, after) <= 3


@given(st.integers(8, 40), st.integers(2, 5), seeds)
@checked
def test_a_new_run_moves_few_others_between_folds(count: int, folds: int, seed: int) -> None:
    before = split(named(count), folds=folds, seed=seed).folds
    after = split(named(count + 1), folds=folds, seed=seed).folds
    assert sum(len(set(old.validate) - set(new.validate)) for old, new in zip(before, after, strict=True)) <= folds


def moved(before: Fold, after: Fold) -> int:
    places = {key: part for part in ("train", "validate", "test") for key in after.part(part)}
    return sum(places[key] != part for part in ("train", "validate", "test") for key in before.part(part))


# Each way


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        (0.8, (8, 2, 0)),
        ("0.8", (8, 2, 0)),
        ("0.7,0.1", (7, 1, 2)),
        ("0.7,0.2", (7, 2, 1)),
        ("0.7,0.3", (7, 3, 0)),
        ([0.6, 0.2, 0.2], (6, 2, 2)),
    ],
    ids=str,
)
def test_ratios_of_ten_runs(ratios: Any, expected: tuple[int, int, int]) -> None:
    assert sizes(split(named(10), ratios=ratios)) == expected


@pytest.mark.parametrize(("count", "expected"), [(2, (1, 1, 0)), (3, (1, 1, 1)), (4, (2, 1, 1))])
def test_few_runs_go_to_training_and_validation_first(count: int, expected: tuple[int, int, int]) -> None:
    assert sizes(split(named(count), ratios="0.7,0.1")) == expected


def test_three_ratios_can_leave_runs_over() -> None:
    result = split(named(10), ratios=[0.3, 0.2, 0.1])
    assert sizes(result) == (3, 2, 1)
    assert set(result.excluded.values()) == {"neither listed in split nor drawn by split.ratios"}
    assert len(result.excluded) == 4


def test_the_seed_decides() -> None:
    records = named(20)
    assert len({split(records, seed=seed).folds for seed in range(10)}) == 10


def test_all_parts_listed() -> None:
    result = split(named(5), train=["run-4", "p/run-0"], validate=["run-1"], test=["run-2"])
    assert one(result) == Fold(keys("run-0", "run-4"), keys("run-1"), keys("run-2"))
    assert result.excluded == {"p/run-3": "neither listed in split nor drawn by split.ratios"}


def test_validation_listed_alone() -> None:
    fold = one(split(named(6), validate=["run-3"], ratios=0.8))
    assert fold.validate == keys("run-3")
    assert fold.train == keys("run-0", "run-1", "run-2", "run-4", "run-5")
    assert fold.test == ()


def test_training_listed_alone() -> None:
    fold = one(split(named(8), train=["run-3", "run-5"], ratios=[0.5, 0.25, 0.25]))
    assert fold.train == keys("run-3", "run-5")
    assert (len(fold.validate), len(fold.test)) == (3, 3)


def test_an_odd_number_of_runs_beside_listed_training_runs() -> None:
    fold = one(split(named(6), train=["run-3"], ratios=[0.5, 0.25, 0.25]))
    assert len(fold.part("all")) == 6
    assert len(fold.validate) == 2


def test_test_runs_listed_beside_folds() -> None:
    result = split(named(7), folds=3, test=["run-0"])
    assert [fold.test for fold in result.folds] == [keys("run-0")] * 3
    assert_sound(result, {entry.key for entry in named(7)})


def test_a_run_listed_twice_in_one_part_counts_once() -> None:
    assert one(split(named(3), train=["run-0", "p/run-0", "run-2"], validate=["run-1"])).train == keys("run-0", "run-2")


def test_leave_one_out() -> None:
    result = split(named(5), leave_one_out=True)
    assert sorted(fold.validate for fold in result.folds) == [keys(f"run-{number}") for number in range(5)]
    assert all(len(fold.train) == 4 for fold in result.folds)


def test_leave_one_group_out() -> None:
    records = [record(f"grid{number % 3}-{number}") for number in range(9)]
    result = split(records, leave_one_out=True, group_pattern="(grid.)-")
    assert len(result.folds) == 3
    assert all(len({key.split("-")[0] for key in fold.validate}) == 1 for fold in result.folds)
    assert all(len(fold.validate) == 3 for fold in result.folds)


def test_groups_go_together_across_projects() -> None:
    records = [record(f"grid{number}-a", project=project) for number in range(4) for project in ("p", "q")]
    result = split(records, group_pattern="(grid.)", ratios=0.5)
    for part in ("train", "validate"):
        grids = [key.split("/")[1] for key in one(result).part(part)]
        assert all(grids.count(grid) == 2 for grid in grids)


def test_the_fold_that_is_trained() -> None:
    result = split(named(6), folds=3)
    assert chosen_fold(config(folds=3, fold=2).split, result) == result.folds[2]
    with pytest.raises(TomoscoutError, match=r"^split.fold: 3 asked for, but there are folds 0 to 2$"):
        chosen_fold(config(folds=3, fold=3).split, result)


# Who may take part


def test_every_run_left_out_has_its_reason() -> None:
    records = [
        *named(4),
        record("thick"),
        record("listed"),
        record("bare", picks=None),
        record("other", tomogram="denoised@5.0"),
        record("empty", picks=0),
    ]
    result = split(records, exclude={"thick": "ice too thick", "p/listed": "seen before"})
    assert result.excluded == {
        "p/thick": "ice too thick",
        "p/listed": "seen before",
        "p/bare": "no target: it has no picks or segmentation of the target classes",
        "p/other": "no tomogram wbp@10.0",
    }
    # An empty picks file says that someone looked and found nothing.
    assert set(one(result).part("all")) == set(keys("run-0", "run-1", "run-2", "run-3", "empty"))


def test_a_run_with_a_target_but_no_annotation_is_no_negative_by_itself() -> None:
    records = [*named(3), record("bare", picks=None)]
    options = config()
    made = plan(records, options)
    with_target = TargetPlan(made.classes, made.inputs | {"p/bare": "digest"}, made.annotated)
    result = make_split(options, records, with_target)
    assert result.excluded == {
        "p/bare": "not annotated; list it under split.negatives to train on it as empty",
    }


def test_negatives_take_part() -> None:
    records = [*named(3), record("bare", picks=None)]
    result = split(records, negatives=["bare"], validate=["run-0"], ratios=0.8)
    assert "p/bare" in one(result).train
    assert result.excluded == {}


# Runs without the tomogram that is segmented


def mixed(plain: int, others: int) -> list[RunRecord]:
    """Runs with the tomogram that is segmented, and runs with one of another voxel spacing alone."""
    return named(plain) + [record(f"other-{number}", tomogram="wbp@20.0") for number in range(others)]


def split_mixed(records: Sequence[RunRecord], **options: Any) -> SplitResult:
    values = config(**options).model_dump(by_alias=True) | {"tomograms": ["wbp@10.0", "wbp@20.0"]}
    settings = parse_config(values, "my.yaml")
    made = plan(records, settings)
    inputs = dict.fromkeys([entry.key for entry in records], "digest")
    return make_split(settings, records, TargetPlan(made.classes, inputs, made.annotated))


@given(st.integers(3, 12), st.integers(0, 12), ratios, seeds)
@checked
def test_runs_without_the_tomogram_that_is_segmented_only_train(
    plain: int, others: int, ratios: Any, seed: int
) -> None:
    records = mixed(plain, others)
    result = split_mixed(records, ratios=ratios, seed=seed)
    assert_sound(result, {entry.key for entry in records})
    fold = one(result)
    assert not any("other" in key for key in fold.validate + fold.test)
    fractions = config(ratios=ratios).split.ratios
    wanted = [fractions[0], 1 - fractions[0], 0] if len(fractions) == 1 else [*fractions, 1 - sum(fractions)][:3]
    if round(len(records) * (wanted[1] + wanted[2])) < plain - 2:
        for size, share in zip(sizes(result), wanted, strict=True):
            assert abs(size - len(records) * share) <= 1.5


@pytest.mark.parametrize("options", [{"folds": 3}, {"leave_one_out": True}], ids=str)
def test_every_fold_trains_on_runs_that_cannot_validate(options: dict[str, Any]) -> None:
    result = split_mixed(mixed(5, 2), **options)
    assert all(set(keys("other-0", "other-1")) <= set(fold.train) for fold in result.folds)
    assert sorted(key for fold in result.folds for key in fold.validate) == list(keys(*(f"run-{n}" for n in range(5))))


def test_a_group_with_a_run_that_cannot_validate_trains() -> None:
    records = [*mixed(6, 0), record("run-0b", tomogram="wbp@20.0")]
    for seed in range(10):
        fold = one(split_mixed(records, group_pattern=r"(run-\d)", ratios=[0.2, 0.4, 0.4], seed=seed))
        assert set(keys("run-0", "run-0b")) <= set(fold.train)


@pytest.mark.parametrize("part", ["validate", "test"])
def test_a_run_that_cannot_validate_is_refused_where_it_is_listed(part: str) -> None:
    message = rf"^split\.{part}: p/other-1 can only train: it has no tomogram wbp@10\.0$"
    with pytest.raises(TomoscoutError, match=message):
        split_mixed(mixed(4, 2), **{part: ["other-1", "run-0"]})
    assert "p/other-1" in one(split_mixed(mixed(4, 2), train=["other-1", "run-0"], ratios=0.8)).train


def test_no_run_that_can_validate() -> None:
    with pytest.raises(TomoscoutError) as caught:
        split_mixed(mixed(0, 3))
    assert str(caught.value) == (
        "split default: no run is left for 'validate' (fold 0, 3 usable runs, 3 without wbp@10.0 can only train, "
        "0 excluded)"
    )


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": ["run-0"], "validate": ["run-0"]}, "split: run 'p/run-0' is listed under both train and validate"),
        ({"train": ["run-0"], "test": ["p/run-0"]}, "split: run 'p/run-0' is listed under both train and test"),
        ({"validate": ["run-1"], "test": ["run-1"]}, "split: run 'p/run-1' is listed under both validate and test"),
        ({"train": ["run-9"]}, "split.train: no run 'run-9' in the projects; there are 4 runs, such as run-0"),
        ({"exclude": ["run-9"]}, "split.exclude: no run 'run-9' in the projects"),
        ({"negatives": ["run-9"]}, "split.negatives: no run 'run-9' in the projects"),
        (
            {"train": ["run-0"], "exclude": {"run-0": "ice too thick"}},
            "split.train: run 'p/run-0' cannot be used: ice too thick",
        ),
        ({"folds": 5}, "split: 5 folds need at least 5 runs or groups, found 4"),
        ({"folds": 4, "test": ["run-0"]}, "split: 4 folds need at least 4 runs or groups, found 3"),
        ({"ratios": 1}, "split default: no run is left for 'validate' (fold 0, 4 usable runs, 0 excluded)"),
        ({"group_pattern": "(grid)"}, "split.group_pattern: '(grid)' does not match run 'run-0'"),
        (
            {"group_pattern": "(run)", "train": ["run-0"], "validate": ["run-1"]},
            "split: p/run-0, p/run-1, p/run-2, p/run-3 belong to one group but are in train and validate",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_divided(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TomoscoutError) as caught:
        split(named(4), **options)
    assert str(caught.value).startswith(message)


def test_one_run_cannot_train_and_validate() -> None:
    records = [record("a"), record("b", picks=None)]
    with pytest.raises(TomoscoutError) as caught:
        split(records)
    assert str(caught.value) == (
        "split default: no run is left for 'validate' (fold 0, 1 usable runs, 1 excluded: "
        "p/b: no target: it has no picks or segmentation of the target classes)"
    )


def test_a_class_that_no_training_run_holds() -> None:
    records = [record("a"), record("b", picks=0), record("c", picks=0)]
    message = (
        r"^split default: no training run has 'ribosome' \(ribosome:expert/0\), only p/a; list one of these under "
        r"split\.train$"
    )
    with pytest.raises(TomoscoutError, match=message):
        split(records, train=["b"], validate=["a"], ratios=0.8)
    assert one(split(records, train=["a", "b"], validate=["c"], ratios=0.8)).validate == keys("c")


# The stage


def test_the_split_file(small: SmallProject) -> None:
    for run in ("a", "b", "c", "d"):
        small.add_run(run)
        if run != "d":
            small.add_picks(run, "ribosome:expert/0", [(100.0, 100.0, 100.0)])
    small.configure(split={"name": "mine", "validate": ["b"], "ratios": 0.8, "seed": 3})
    succeeded(small.list_runs())
    output = small.folder / "results" / "splits" / "mine.json"
    succeeded(small.command("split", "--output", output))
    assert read_json(output) == {
        "name": "mine",
        "seed": 3,
        "folds": [{"train": ["demo/a", "demo/c"], "validate": ["demo/b"], "test": []}],
        "excluded": {"demo/d": "no target: it has no picks or segmentation of the target classes"},
    }
    first = output.read_bytes()
    succeeded(small.command("split", "--output", output))
    assert output.read_bytes() == first


# Every class in training


def holding(run: str, *names: str) -> RunRecord:
    """A run with picks of these objects."""
    picks = {Source(name, "expert", "0"): PickCount(5, "digest") for name in names}
    return RunRecord("p", run, 0, {"wbp@10.0": (8, 8, 8)}, picks, {}, "")


def split_classes(records: Sequence[RunRecord], **options: Any) -> SplitResult:
    names = sorted({source.name for entry in records for source in entry.picks})
    classes = tuple(
        TargetClass(name, label, 60.0, 48.0, (Source(name, "expert", "0"),)) for label, name in enumerate(names, 1)
    )
    made = {entry.key: "digest" for entry in records}
    return make_split(config(**options), records, TargetPlan(classes, made, frozenset(made)))


@given(st.integers(4, 30), st.lists(st.integers(0, 29), min_size=1, max_size=2), ratios, seeds)
@checked
def test_a_ratio_split_trains_on_every_class(count: int, rare: list[int], ratios: Any, seed: int) -> None:
    rare = [number % count for number in rare]
    records = [
        holding(f"run-{number}", "ribosome", *(f"rare-{n}" for n, at in enumerate(rare) if at == number))
        for number in range(count)
    ]
    before = one(split(records, ratios=ratios, seed=seed))
    assume(len(before.train) >= len(rare))
    after = one(split_classes(records, ratios=ratios, seed=seed))
    wanted = {records[number].key for number in rare}
    assert wanted <= set(after.train)
    assert [len(after.part(part)) for part in ("train", "validate", "test")] == [
        len(before.part(part)) for part in ("train", "validate", "test")
    ]
    # No more runs change places than must, and none where every class trained already.
    assert len(set(after.train) - set(before.train)) == len(wanted - set(before.train))


def test_what_cannot_validate_does_not_take_the_place_of_what_does() -> None:
    records = [holding(f"run-{number}", "ribosome") for number in range(4)]
    records += [
        RunRecord("p", f"other-{number}", 0, {"wbp@20.0": (8, 8, 8)}, records[0].picks, {}, "") for number in range(3)
    ]
    values = config(ratios=[0.5, 0.3, 0.2]).model_dump(by_alias=True) | {"tomograms": ["wbp@10.0", "wbp@20.0"]}
    for rare in range(4):
        held = [*records[:rare], holding(f"run-{rare}", "ribosome", "rare"), *records[rare + 1 :]]
        classes = tuple(
            TargetClass(name, label, 60.0, 48.0, (Source(name, "expert", "0"),))
            for label, name in enumerate(("ribosome", "rare"), 1)
        )
        made = {entry.key: "digest" for entry in held}
        fold = one(make_split(parse_config(values, "my.yaml"), held, TargetPlan(classes, made, frozenset(made))))
        assert f"p/run-{rare}" in fold.train
        assert not any("other" in key for key in fold.validate + fold.test)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"folds": 4},
            "no training run of fold {fold} has 'rare' (rare:expert/0), only p/run-0, which validate or test there; ",
        ),
        (
            {"train": ["run-1"], "ratios": 0.5},
            "no training run has 'rare' (rare:expert/0), only p/run-0; list one of these under split.train",
        ),
        (
            {"exclude": {"run-0": "thick ice"}},
            "of 'rare' (rare:expert/0) there is something only in runs that are left out (p/run-0: thick ice)",
        ),
    ],
    ids=str,
)
def test_a_class_that_cannot_train_is_named_with_its_runs(options: dict[str, Any], message: str) -> None:
    records = [holding("run-0", "ribosome", "rare"), *(holding(f"run-{number}", "ribosome") for number in range(1, 4))]
    with pytest.raises(TomoscoutError) as caught:
        split_classes(records, **options)
    folds = [message.format(fold=fold) for fold in range(4)]
    assert any(str(caught.value).startswith(f"split default: {text}") for text in folds)


def test_a_class_that_no_run_holds() -> None:
    records = [holding(f"run-{number}", "ribosome") for number in range(4)]
    records[0].picks[Source("rare", "expert", "0")] = PickCount(0, "digest")
    with pytest.raises(TomoscoutError, match=r"^targets: no run has any 'rare' \(rare:expert/0\); annotate one"):
        split_classes(records)


def test_runs_that_lack_a_class_can_be_left_out() -> None:
    records = [holding(f"run-{number}", "ribosome", *(["rare"] if number else [])) for number in range(5)]
    classes = tuple(
        TargetClass(name, label, 60.0, 48.0, (Source(name, "expert", "0"),))
        for label, name in enumerate(("ribosome", "rare"), 1)
    )
    made = {entry.key: "digest" for entry in records}
    plan = TargetPlan(classes, made, frozenset(made), {"p/run-0": ("rare",)})
    values = config().model_dump(by_alias=True)
    values["targets"]["unannotated"] = "exclude"
    result = make_split(parse_config(values, "my.yaml"), records, plan)
    assert result.excluded == {"p/run-0": "rare not annotated (targets.unannotated: exclude)"}
    assert make_split(config(), records, plan).excluded == {}
