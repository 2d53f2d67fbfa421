"""Labels from quantised probabilities."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoscout.learning.readout import argmax_labels


@given(st.integers(0, 10_000), st.integers(1, 5))
@settings(deadline=None, max_examples=30, derandomize=True)
def test_labels_are_the_most_probable_class(seed: int, classes: int) -> None:
    random = np.random.default_rng(seed)
    # Few distinct values, so that classes are often equally probable; sums of up to 255 with the background's share.
    shares = random.multinomial(17, np.ones(classes + 1) / (classes + 1), size=(2, 3, 4)).transpose(3, 0, 1, 2)
    probabilities = (shares[1:] * 15).astype(np.uint8)
    labels = argmax_labels(probabilities)
    for place in np.ndindex(2, 3, 4):
        values = [int(probabilities[(channel, *place)]) for channel in range(classes)]
        background = 255 - sum(values)
        expected = 0 if background > max(values) else 1 + values.index(max(values))
        assert labels[place] == expected


def test_labels_where_quantised_probabilities_sum_to_more_than_one() -> None:
    probabilities = np.array([128, 64, 64], dtype=np.uint8).reshape(3, 1, 1, 1)
    assert argmax_labels(probabilities).item() == 1


def test_labels_of_many_classes() -> None:
    probabilities = np.zeros((300, 1, 1, 2), dtype=np.uint8)
    probabilities[299, 0, 0, 1] = 200
    labels = argmax_labels(probabilities)
    assert labels.tolist() == [[[0, 300]]]
