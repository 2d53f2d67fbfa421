"""Progress of long tasks on a terminal and in logs."""

from __future__ import annotations

import sys
import time


class Progress:
    """A progress line: rewritten twice a second on a terminal, printed every 15 seconds in a log.

    Args:
        total: number of steps of the task.
        start: number of steps done earlier, which the rate does not count.
    """

    def __init__(self, total: int, start: int = 0) -> None:
        self.total = total
        self._live = sys.stderr.isatty()
        self._pause = 0.5 if self._live else 15.0
        self._started = self._shown = time.monotonic()
        self._first = start

    def show(self, done: int, text: str, *, now: bool = False) -> None:
        """Show `text`, the rate and the remaining time after `done` steps. `now`: show it even shortly after the last
        line."""
        clock = time.monotonic()
        if not now and clock - self._shown < self._pause:
            return
        self._shown = clock
        rate = (done - self._first) / max(clock - self._started, 1e-9)
        left = (self.total - done) / rate if rate else 0.0
        line = f"{text}  {rate:.2f}/s  {_clock(left)} left"
        print(f"\r\033[K{line}" if self._live else line, end="" if self._live else "\n", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Print a line that is not rewritten."""
        print(f"\r\033[K{text}" if self._live else text, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
