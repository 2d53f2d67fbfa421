"""octopi, in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from functools import cache
from pathlib import Path

VERSION = "1.7.0"
REQUIREMENTS = ["torch==2.13.0", f"octopi=={VERSION}"]


@cache
def octopi() -> Path:
    """The octopi command; installed into `.bench/octopi` unless TOMOSCOUT_BENCH_OCTOPI names an environment."""
    home = Path(os.environ.get("TOMOSCOUT_BENCH_OCTOPI", Path(__file__).parents[2] / ".bench" / "octopi"))
    command = home / "bin" / "octopi"
    if not command.exists():
        print(f"installing {' '.join(REQUIREMENTS)} into {home}", file=sys.stderr)
        venv.create(home, with_pip=True)
        subprocess.run([home / "bin" / "pip", "install", "--quiet", *REQUIREMENTS], check=True)
    found = subprocess.run(
        [home / "bin" / "python", "-c", "from importlib.metadata import version; print(version('octopi'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    if found != VERSION:
        sys.exit(f"{home}: octopi {found}; the comparison is with {VERSION}")
    return command
