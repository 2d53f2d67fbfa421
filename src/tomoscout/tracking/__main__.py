"""The child process of a training: records one folder, given as JSON on standard input."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import threading
from pathlib import Path

from tomoscout.machine.errors import TomoscoutError
from tomoscout.tracking.options import Tracking
from tomoscout.tracking.store import sync


def _main() -> None:
    # A signal to the whole job is handled by the training, which may have more to record.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_training, args=(order["limit"],), daemon=True).start()
    with contextlib.suppress(OSError):
        os.nice(19)
    try:
        sync(Path(order["folder"]), Tracking(experiment=order["experiment"]), order["uri"])
    except TomoscoutError as error:
        sys.exit(str(error))


def _end_with_training(limit: float) -> None:
    """End this process, even if it hangs, when the training closes its end of the pipe or the time limit is over."""
    ended, _, _ = select.select([sys.stdin], [], [], limit)
    if not ended:
        os.write(sys.stderr.fileno(), f"no end after {limit:g} s\n".encode())
    os._exit(1)


_main()
