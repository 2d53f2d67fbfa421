"""What an exploration searches of losses: said by each of them."""

from __future__ import annotations

from typing import Any

from tomoscout.learning.losses import LOSSES, VOXEL_LOSSES, search_space
from tomoscout.learning.losses.focal import Focal

TVERSKY = ["CrossEntropyTversky", "Tversky", "FocalTversky", "WeightedFocalTversky"]


def test_each_option_is_searched_where_a_loss_has_it() -> None:
    """In this order: proposals of a study depend on it."""
    assert list(search_space().items()) == [
        (
            "loss.name",
            {
                "choices": [
                    *("CrossEntropyTversky", "CrossEntropy", "Dice", "GeneralisedDice", "Focal"),
                    *TVERSKY[1:],
                ]
            },
        ),
        ("loss.alpha", {"low": 0.1, "high": 0.9, "when": {"loss.name": TVERSKY}}),
        ("loss.beta", {"low": 0.1, "high": 0.9, "when": {"loss.name": TVERSKY}}),
        ("loss.gamma", {"low": 0.1, "high": 3.0, "when": {"loss.name": ["Focal", *TVERSKY[2:]]}}),
        (
            "loss.weight_tversky",
            {"low": 0.05, "high": 5.0, "log": True, "when": {"loss.name": [TVERSKY[0], TVERSKY[-1]]}},
        ),
    ]


def test_losses_that_share_an_option_search_it_in_one_range() -> None:
    ranges: dict[str, Any] = {}
    for loss in LOSSES.values():
        for option, domain in loss.SPACE.items():
            assert option in loss.model_fields
            assert ranges.setdefault(option, domain) == domain


def test_weights_of_voxels_matter_to_losses_of_voxels() -> None:
    assert VOXEL_LOSSES == ["CrossEntropyTversky", "CrossEntropy", "Focal", "WeightedFocalTversky"]
    assert [type(part) for part in LOSSES["WeightedFocalTversky"](weight_tversky=0.0).parts()] == [Focal]
