"""The models of one configuration that train on different runs: names, runs, seeds, and those of a learning curve."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tomoscout.machine.errors import TomoscoutError
from tomoscout.plan.folds import Fold
from tomoscout.plan.members import SINGLE, Member, curve_members, member_of
from tomoscout.plan.options import LearningCurve

RUNS = tuple(f"data/TS_{number:02d}" for number in range(10))
FOLD = Fold(RUNS[:8], RUNS[8:9], RUNS[9:])
MEMBERS = st.builds(Member, st.none() | st.integers(0, 50), st.integers(1, 100), st.integers(0, 50))


def test_names() -> None:
    assert SINGLE.name("unet") == "unet"
    assert Member(3).name("unet") == "unet-fold-3"
    assert Member(percent=25, draw=1).name("unet") == "unet-part-25-1"
    assert Member(percent=100, draw=1).name("unet") == "unet-part-100-1"
    assert Member(2, 50).name("unet") == "unet-fold-2-part-50-0"


@given(MEMBERS, st.sampled_from(["unet", "my.unet", "unet-fold-1", "unet-part-25-0"]))
def test_a_name_says_which_member_it_is(member: Member, model: str) -> None:
    assert member_of(member.name(model), model) == member


@pytest.mark.parametrize(
    "name",
    [
        "other",
        "unet-fold-",
        "unet-fold-x",
        "other-fold-1",
        "unet-fold-1-fold-2",
        "my-unet-fold-1",
        "unet-part-25",
        "unet-part-0-0",
        "unet-part-101-0",
        # Of these the model has a shorter name.
        "unet-part-100-0",
        "unet-fold-01",
    ],
)
def test_what_is_no_name_of_a_member(name: str) -> None:
    with pytest.raises(TomoscoutError, match=f"^{name}: not the name of a model that is trained here; expected unet, "):
        member_of(name, "unet")


def test_a_point_in_a_name_is_a_point() -> None:
    with pytest.raises(TomoscoutError):
        member_of("myxunet-fold-1", "my.unet")


@given(st.integers(1, 100), st.integers(1, 100), st.integers(0, 5))
def test_within_a_draw_fewer_runs_lie_in_more(one: int, other: int, draw: int) -> None:
    few, many = (Member(percent=percent, draw=draw).runs(FOLD) for percent in sorted((one, other)))
    assert {*few.train} <= {*many.train} <= {*FOLD.train}
    assert list(few.train) == sorted(few.train)
    assert len(few.train) >= 1
    assert few.validate == many.validate == FOLD.validate
    assert few.test == many.test == FOLD.test


@pytest.mark.parametrize(("percent", "count"), [(1, 1), (12, 1), (13, 2), (25, 2), (50, 4), (51, 5), (99, 8), (100, 8)])
def test_a_share_is_rounded_up(percent: int, count: int) -> None:
    assert len(Member(percent=percent).runs(FOLD).train) == Member(percent=percent).count(8) == count


def test_all_runs_in_every_draw() -> None:
    for draw in range(3):
        assert Member(percent=100, draw=draw).runs(FOLD) == FOLD


def test_draws_take_other_runs_by_their_names_alone() -> None:
    drawn = {Member(percent=50, draw=draw).runs(FOLD).train for draw in range(6)}
    assert len(drawn) > 3
    turned = Fold(FOLD.train[::-1], FOLD.validate, FOLD.test)
    assert Member(percent=50, draw=1).runs(turned) == Member(percent=50, draw=1).runs(FOLD)


def test_a_run_that_is_added_changes_at_most_one_other() -> None:
    more = Fold((*FOLD.train, "data/TS_99"), FOLD.validate, FOLD.test)
    for draw in range(6):
        before = {*Member(percent=50, draw=draw).runs(FOLD).train}
        after = {*Member(percent=50, draw=draw).runs(more).train}
        assert len(before - after) <= 1


def test_every_draw_has_its_seed() -> None:
    assert [Member(draw=draw).seed(42) for draw in range(3)] == [42, 43, 44]
    assert Member(draw=1).seed(2**32 - 1) == 0


def test_the_members_of_a_curve() -> None:
    options = LearningCurve(fractions=[0.25, 0.5, 1.0], draws=2)
    expected = [Member(percent=percent, draw=draw) for percent in (25, 50, 100) for draw in (0, 1)]
    assert curve_members(options, 8) == expected
    # With two runs a quarter and a half are one run.
    assert curve_members(options, 2) == expected[2:]
    assert curve_members(options, 1) == expected[4:]
