"""The split stage: writes which runs are for training, validation and test."""

from __future__ import annotations

from pathlib import Path

from tomoscout.machine.files import write_json
from tomoscout.plan.plan import Plan
from tomoscout.plan.splits import split_to_json
from tomoscout.plan.targets import print_warnings


def run_split(plan: Plan, output: Path) -> None:
    """Write the split file.

    Raises:
        TomoscoutError: a part is left without runs, or a listed run cannot be used.
    """
    print_warnings(plan.targets)
    write_json(output, split_to_json(plan.config.split, plan.split))
