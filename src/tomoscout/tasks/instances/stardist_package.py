"""The package stardist, without TensorFlow: it is an extra."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tomoscout.machine.errors import TomoscoutError


def stardist_module(name: str, wanted_by: str) -> Any:
    """A module of the package.

    Args:
        name: without the package.
        wanted_by: what needs it, for the message.

    Raises:
        TomoscoutError: it is not installed.
    """
    try:
        return import_module(f"stardist.{name}")
    except ImportError as error:
        raise TomoscoutError(
            f"{wanted_by} needs the package stardist ({error}): `make .venv/cells`, or install tomoscout[cells]"
        ) from None
