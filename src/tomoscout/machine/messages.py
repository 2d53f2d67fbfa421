"""Messages to the user on standard error. All messages pass through these functions, so that log levels or another
format such as JSON need changes only here. machine/progress.py shows progress lines."""

from __future__ import annotations

import sys
from collections.abc import Iterable


def say(text: str) -> None:
    """Print what the program does or has done."""
    print(text, file=sys.stderr, flush=True)


def note(text: str) -> None:
    """Print something that the user may not expect, although it is not an error."""
    say(f"note: {text}")


def warn(text: str) -> None:
    """Print a warning: something may be wrong with the results or with their inputs."""
    say(f"warning: {text}")


def times(sizes: Iterable[int]) -> str:
    """Sizes as text, such as 64×192×192."""
    return "×".join(map(str, sizes))
