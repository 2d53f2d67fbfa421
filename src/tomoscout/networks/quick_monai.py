"""MONAI without what its import loads for parts that no network uses."""

from __future__ import annotations

import sys
from importlib import import_module

UNUSED = ("matplotlib", "mlflow", "optuna", "pandas", "skimage")
"""Packages that MONAI imports where it finds them: with them its import takes twice as long."""


def import_monai() -> None:
    """Import MONAI as where those packages are not installed; others find them as before.

    For commands alone: in a process that imports this package, parts of MONAI that a user wants would miss them.
    """
    hidden = [name for name in UNUSED if name not in sys.modules]
    # None makes an import fail: https://docs.python.org/3/reference/import.html#the-module-cache
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        import_module("monai.networks.nets")
    finally:
        for name in hidden:
            del sys.modules[name]
