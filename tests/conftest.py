"""What tests of several rooms start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.project import SmallProject


@pytest.fixture
def small(tmp_path: Path) -> SmallProject:
    """A project without any run."""
    return SmallProject(tmp_path)
