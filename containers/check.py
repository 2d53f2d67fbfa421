"""Checks an image from within: its packages are those of the locks that it was made from, and it has no compiler. Says
which PyTorch it has."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import distributions, requires, version
from pathlib import Path

COMPILERS = ["cc", "gcc", "g++", "clang", "rustc", "go", "make"]
OF_THE_ENVIRONMENT = {"pip", "tomoscout"}


def normalised(name: str) -> str:
    """The name of a package as PEP 503 has it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def allowed(locks: Sequence[str]) -> dict[str, str]:
    """Packages of the locks → their versions."""
    folder = Path(__file__).parents[1] / "envs"
    lines = [line for lock in locks for line in (folder / f"{lock}.lock").read_text(encoding="utf-8").split("\n")]
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {normalised(name): pinned for name, pinned in pins}


def of_cuda() -> set[str]:
    """Packages that PyTorch's CUDA build asks for at exact versions, which a lock made with its CPU build lacks."""
    needs = [need.split(";")[0] for need in requires("torch") or []]
    return {normalised(need.split("=")[0].split("[")[0]) for need in needs if "==" in need}


def main(locks: Sequence[str]) -> None:
    """Raises:
    SystemExit: a package is not in the locks, or there is a compiler.
    """
    lock = allowed(locks)
    found = {normalised(one.metadata["Name"]): one.version for one in distributions()}
    others = found.keys() - lock.keys() - OF_THE_ENVIRONMENT - (of_cuda() if "torch" in found else set())
    # A local part names a build: 2.13.0+cpu is 2.13.0.
    wrong = [name for name, pinned in lock.items() if found.get(name, "").split("+")[0] != pinned]
    compilers = [name for name in COMPILERS if shutil.which(name)]
    for what, names in ("not in the lock", others), ("not as in the lock", wrong), ("compilers", compilers):
        if names:
            sys.exit(f"error: {what}: {', '.join(sorted(names))}")
    torch = f"PyTorch {version('torch')}" if "torch" in found else "no PyTorch"
    print(f"tomoscout {found['tomoscout']}: {len(found)} packages, {torch}")


if __name__ == "__main__":
    main(sys.argv[1:])
