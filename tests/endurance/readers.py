"""Read picks, targets, labels and probabilities through copick while the stages write them again and again, with other
settings each time: `python tests/endurance/readers.py --seconds 60`.

A reader must see all of one version: never half a file, nothing where something was, no zeros where neither has any.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from endurance.chain import OTHER, Stage, stages, succeed, write_settings
from endurance.processes import import_everything, run

RUN = "phantom-000"
SPACING = 20.0
WRITERS = ("targets", "segment", "localize")
VERSIONS: list[dict[str, Any]] = [{}, {name: OTHER[name] for name in ("targets", "segment", "localize")}]

Content = NDArray[Any] | list[Any]


def read_all(copick_config: Path) -> Iterator[tuple[str, Callable[[], Content]]]:
    """What another program finds of a run's results in the overlay, opened anew, and how it reads each."""
    from copick.impl.filesystem import CopickRootFSSpec

    found = CopickRootFSSpec.from_file(str(copick_config)).get_run(RUN)
    for picks in found.get_picks(user_id="tomoscout"):
        yield f"picks {picks.pickable_object_name}", lambda picks=picks: _points(picks)
    for user in found.get_segmentations(user_id="tomoscout"):
        yield f"segmentation {user.name}", lambda user=user: _array(user.zarr())
    tomogram = found.get_voxel_spacing(SPACING).get_tomograms("wbp")[0]
    for features in tomogram.features:
        yield f"probabilities {features.feature_type}", lambda features=features: _array(features.zarr())


def _points(picks: Any) -> list[Any]:
    picks.load()
    return [json.loads(point.model_dump_json()) for point in picks.points]


def _array(store: Any) -> NDArray[Any]:
    import zarr

    return np.asarray(zarr.open_group(store, mode="r")["0"])


def snapshot(copick_config: Path) -> dict[str, Content]:
    """Everything that there is."""
    return {name: read() for name, read in read_all(copick_config)}


def what_is_wrong(found: Content, versions: list[Content]) -> str | None:
    """Why something read is of no version, nor voxel by voxel of one of them."""
    if isinstance(found, list):
        return None if found in versions else f"{len(found)} points of no version"
    if found.shape != versions[0].shape:  # type: ignore[union-attr]
        return f"shape {found.shape}"
    right = np.logical_or.reduce([found == version for version in versions])
    return None if right.all() else f"{np.count_nonzero(~right)} of {right.size} voxels are of no version"


def read_for(copick_config: Path, versions: list[dict[str, Content]], seconds: float) -> tuple[Counter[str], list[str]]:
    """Read again and again; returns how often each kind was read, and what was wrong."""
    reads: Counter[str] = Counter()
    problems: list[str] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        missing = set(versions[0])
        try:
            for name, read in read_all(copick_config):
                missing.discard(name)
                reads[name.split()[0]] += 1
                try:
                    problem = what_is_wrong(read(), [version[name] for version in versions])
                except Exception as error:
                    problem = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
                if problem:
                    problems.append(f"{name}: {problem}")
        except Exception as error:
            problems.append(f"list: {type(error).__name__}: {' '.join(str(error).split())[:120]}")
            continue
        problems += [f"{name}: not there" for name in missing]
    return reads, problems


@contextmanager
def rewriting(work: Path, writers: list[Stage]) -> Iterator[None]:
    """The stages write the versions in turn, in another process."""
    stop = work.parent / "stop"
    process = os.fork()
    if process == 0:
        try:
            while not stop.exists():
                for changes in VERSIONS:
                    write_settings(work, changes)
                    for stage in writers:
                        run(stage.arguments(work), work)
        finally:
            os._exit(0)
    try:
        yield
    finally:
        stop.touch()
        os.waitpid(process, 0)


def try_readers(base: Path, seconds: float) -> tuple[Counter[str], list[str]]:
    """Make both versions, then read while they are written."""
    import_everything()
    work = base / "work"
    work.mkdir(parents=True)
    write_settings(work, {})
    for stage in stages()[:-2]:
        if stage.name.split()[0] not in ("explore", "trial", "report", "evaluate", "overlays"):
            succeed(stage, work)
    writers = [stage for stage in stages() if stage.name in WRITERS]
    versions = []
    for changes in VERSIONS:
        write_settings(work, changes)
        for stage in writers:
            succeed(stage, work)
        versions.append(_in_fork(lambda: snapshot(work / "results/phantom/copick.json"), base))
    with rewriting(work, writers):
        return _in_fork(lambda: read_for(work / "results/phantom/copick.json", versions, seconds), base)


def _in_fork(ask: Callable[[], Any], base: Path) -> Any:
    """The answer of a process that may start threads, which this one must not before it forks again."""
    path = base / "answer"
    process = os.fork()
    if process == 0:
        try:
            path.write_bytes(pickle.dumps(ask()))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]):
        raise RuntimeError("the reader failed")
    return pickle.loads(path.read_bytes())


def main() -> None:
    """Read; exit 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    options = parser.parse_args()
    base = (options.folder or Path(tempfile.mkdtemp(prefix="tomoscout-readers-"))).resolve()
    reads, problems = try_readers(base, options.seconds)
    print(f"{reads.total()} reads ({', '.join(f'{count} of {kind}' for kind, count in reads.items())})")
    print(f"{len(problems)} went wrong")
    for problem, count in Counter(problems).most_common(20):
        print(f"{count:5d} {problem}")
    if not options.folder:
        shutil.rmtree(base)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
