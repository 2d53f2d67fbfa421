"""Which options decide a result is said at the option."""

from __future__ import annotations

import pytest

from tomoscout.explore.options import Explore
from tomoscout.options.sections import Section
from tomoscout.phantom.options import Phantom
from tomoscout.plan.options import Targets
from tomoscout.stages.options import Segment
from tomoscout.tasks.picking.options import Evaluate, Localize, Train


@pytest.mark.parametrize(
    "section, left_out",
    [
        (Targets, {"runs", "unannotated"}),
        (Train, {"name", "device", "checkpoint_seconds", "memory_gb", "gpu_memory_gb"}),
        (Explore, {"trials", "top", "networks", "space"}),
        (Segment, {"device", "keep_probabilities", "runs", "tomogram", "models", "mask"}),
        (Localize, set()),
        (Evaluate, {"runs"}),
        (Phantom, {"runs"}),
    ],
)
def test_digests_leave_out_what_decides_no_result(section: type[Section], left_out: set[str]) -> None:
    """Another set would make results out of date that were made before."""
    values = section()
    assert values.decisive() == values.model_dump(mode="json", exclude=left_out)
    assert values.model_dump().keys() - values.decisive().keys() == left_out


def test_a_digest_may_count_more_or_fewer() -> None:
    counted = Train().decisive(keep=["device"], leave_out=["steps", "seed"]).keys()
    assert "device" in counted and "name" not in counted and not {"steps", "seed"} & counted
