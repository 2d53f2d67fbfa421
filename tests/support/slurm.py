"""A Slurm of this machine alone, with two pretended GPUs, and the profile as a site would set it."""

from __future__ import annotations

import fcntl
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from support.snakemake_session import ROOT

HARNESS = ROOT / "tests/slurm"
PROFILE = ROOT / "workflow/profiles/slurm/profile.yaml"
SITE = {"cpu_partition": "cpu", "gpu_partition": "gpu", "gpu_model": "pretended"}
SOON = ("--slurm-init-seconds-before-status-checks", "1")


@contextmanager
def running_slurm(folder: Path) -> Iterator[Path]:
    """A Slurm that lives as long as the context. One at a time: tests in another process wait for each other."""
    with (Path(tempfile.gettempdir()) / "tomoscout-tests-of-slurm").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        started = subprocess.run([HARNESS / "start.sh", folder], capture_output=True, text=True, check=False)
        if started.returncode == 77:
            pytest.skip(started.stderr.strip())
        try:
            assert started.returncode == 0, started.stderr
            yield folder
        finally:
            subprocess.run([HARNESS / "stop.sh", folder], check=True)


def site_profile(folder: Path, **resources: str) -> Path:
    """The profile with what a site changes in it, and resources for its GPU jobs."""
    values = yaml.safe_load(PROFILE.read_text())
    values["__variables__"] |= SITE
    [for_each_rule] = values["set-resources"].values()
    for_each_rule["?rule"] |= resources
    profile = folder / "profile.yaml"
    profile.write_text(yaml.safe_dump(values, sort_keys=False))
    return profile
