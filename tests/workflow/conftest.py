"""What tests of the workflow start from."""

from __future__ import annotations

import pytest

from support.snakemake_session import Session


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A session in which there is the phantom alone; tests that change anything take a copy (`copy_of`)."""
    session = Session(tmp_path_factory.mktemp("phantom"))
    session.snakemake("phantom")
    return session
