"""Messages for people, on standard error. All pass here: a level, or another form such as JSON, is a change of this
file. Lines of progress are shown by machine/progress.py."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Print what is being done, or was done."""
    print(text, file=sys.stderr, flush=True)


def note(text: str) -> None:
    """Print what the user may not expect, though nothing is wrong."""
    say(f"note: {text}")


def warn(text: str) -> None:
    """Print what may be wrong with the results, or with what they are made from."""
    say(f"warning: {text}")
