"""The stage that checks annotated images of cells."""

from __future__ import annotations

from pathlib import Path

from tomoscout.machine.messages import say, warn
from tomoscout.options.config import Config
from tomoscout.tasks.instances.annotations import find_annotations
from tomoscout.tasks.instances.checks import PAGE, run_check


def run_check_annotations(config: Config, folder: Path) -> None:
    """Check all annotated images; writes a table, pictures, and last a page to scroll through.

    Raises:
        TomoscoutError: the annotations cannot be used.
    """
    findings = run_check(find_annotations(config.cells, config.projects), config.cells.channels, folder)
    suspicious = [finding for finding in findings if finding.suspicious]
    say(f"{len(findings)} images with {sum(finding.objects for finding in findings)} objects; {folder / PAGE}")
    if suspicious:
        warn(f"{len(suspicious)} of {len(findings)} images look wrong in some way; see {folder / PAGE}")
