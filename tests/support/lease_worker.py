"""A job that leases a GPU, in a process of its own for test_lease.py.

lease_worker.py work JOURNAL NAME LEASES   takes and gives back so many leases and writes down when
lease_worker.py hold [USER]                holds a lease until its standard input ends, as another user if one is given
lease_worker.py fork | start               the same, with a forked child, or a started program, that lives as long
lease_worker.py leave                      the same, after a forked child has left the lease

All but the first print the GPU when they have it.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time

from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.lease import leased_gpu


def work(journal: str, name: str, leases: str) -> None:
    chance = random.Random(name)
    book = os.open(journal, os.O_WRONLY | os.O_APPEND)

    def note(what: str, gpu: str) -> None:
        os.write(book, f"{what} {name} {gpu} {time.monotonic_ns()}\n".encode())

    for _ in range(int(leases)):
        with leased_gpu("cuda"):
            gpu = os.environ["CUDA_VISIBLE_DEVICES"]
            note("take", gpu)
            time.sleep(chance.uniform(0.01, 0.06))
            note("release", gpu)


def hold(user: str = "") -> None:
    if user:
        os.setgroups([])
        os.setgid(int(user))
        os.setuid(int(user))
    with leased_gpu("auto") as gpu:
        wait_with(gpu)


def fork() -> None:
    with leased_gpu("auto") as gpu:
        if os.fork():
            print(gpu, flush=True)
        sys.stdin.read()


def start() -> None:
    with leased_gpu("auto") as gpu:
        subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], close_fds=False)
        wait_with(gpu)


def leave() -> None:
    with contextlib.ExitStack() as lease:
        gpu = lease.enter_context(leased_gpu("auto"))
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            wait_with(gpu)


def wait_with(gpu: str | None) -> None:
    print(gpu, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    try:
        {"work": work, "hold": hold, "fork": fork, "start": start, "leave": leave}[sys.argv[1]](*sys.argv[2:])
    except TomoscoutError as error:
        sys.exit(f"error: {error}")
