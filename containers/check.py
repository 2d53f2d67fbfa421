"""Checks an image from within: its packages are those of the locks that it was made from, also those of a back end in
their own environment, and it has no compiler. Says which PyTorch it has."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import Distribution, distributions
from pathlib import Path

COMPILERS = ["cc", "gcc", "g++", "clang", "rustc", "go", "make"]
OF_THE_ENVIRONMENT = {"pip", "tomoscout"}
BACKENDS = {"stardist", "cellpose"}


def normalised(name: str) -> str:
    """The name of a package as PEP 503 has it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def allowed(locks: Sequence[str]) -> dict[str, str]:
    """Packages of the locks → their versions."""
    folder = Path(__file__).parents[1] / "envs"
    lines = [line for lock in locks for line in (folder / f"{lock}.lock").read_text(encoding="utf-8").split("\n")]
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {normalised(name): pinned for name, pinned in pins}


def of_cuda(packages: Mapping[str, Distribution]) -> set[str]:
    """Packages that PyTorch's CUDA build asks for at exact versions, which a lock made with its CPU build lacks."""
    needs = [need.split(";")[0] for need in packages["torch"].requires or []] if "torch" in packages else []
    return {normalised(need.split("=")[0].split("[")[0]) for need in needs if "==" in need}


def installed(*folders: str) -> dict[str, Distribution]:
    """The packages of this Python, or those in folders, by name."""
    found = distributions(path=list(folders)) if folders else distributions()
    return {normalised(one.metadata["Name"]): one for one in found}


def compare(packages: Mapping[str, Distribution], lock: Mapping[str, str]) -> None:
    """Compare packages with a lock, names with their versions.

    Raises:
        SystemExit: they differ.
    """
    others = packages.keys() - lock.keys() - OF_THE_ENVIRONMENT - of_cuda(packages)
    # A local part names a build: 2.13.0+cpu is 2.13.0.
    versions = {name: one.version.split("+")[0] for name, one in packages.items()}
    wrong = [name for name, pinned in lock.items() if versions.get(name, "") != pinned]
    for what, names in ("not in the lock", others), ("not as in the lock", wrong):
        if names:
            sys.exit(f"error: {what}: {', '.join(sorted(names))}")


def main(locks: Sequence[str]) -> None:
    """Raises:
    SystemExit: a package is not in the locks, or there is a compiler.
    """
    own = BACKENDS.intersection(locks)
    found = installed()
    besides = ["network"] if own or "cells" in locks else []
    compare(found, allowed([*(lock for lock in locks if lock not in own), *besides]))
    for backend in own:
        compare(installed(*map(str, Path(sys.prefix, backend).glob("lib/python3*/site-packages"))), allowed([backend]))
    if compilers := [name for name in COMPILERS if shutil.which(name)]:
        sys.exit(f"error: compilers: {', '.join(compilers)}")
    torch = f"PyTorch {found['torch'].version}" if "torch" in found else "no PyTorch"
    print(f"tomoscout {found['tomoscout'].version}: {len(found)} packages, {torch}")


if __name__ == "__main__":
    main(sys.argv[1:])
