"""Which code a workflow expects in its jobs: an image may hold an older one."""

from __future__ import annotations

import os
from collections.abc import Mapping

from tomoscout import __version__
from tomoscout.machine.errors import TomoscoutError

CODE = "TOMOSCOUT_CODE"
"""Environment variable that tells the commands of a job which code the workflow expects."""


def code() -> str:
    """What tells codes apart that compute other numbers: the version of the package, and those of the stages."""
    # Imported only where it is asked for: commands start without it.
    from tomoscout.machine.files import digest
    from tomoscout.plan.stages import STAGES

    return f"{__version__} (stages {digest({name: stage.version for name, stage in STAGES.items()})[:8]})"


def refuse_other_code(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse to run for a workflow whose code would compute other numbers.

    Raises:
        TomoscoutError: this code is not what the workflow expects.
    """
    expected = environment.get(CODE)
    if expected and expected != code():
        image = environment.get("APPTAINER_CONTAINER") or environment.get("SINGULARITY_CONTAINER") or "the image"
        raise TomoscoutError(f"{image} has tomoscout {code()}, the workflow {expected}: build it again (make image)")
