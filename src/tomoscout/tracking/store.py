"""Synchronisation of an MLflow store with model folders: what the store lacks is added."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tomoscout.machine.errors import TomoscoutError, without_passwords
from tomoscout.machine.files import digest, digest_file
from tomoscout.machine.progress import Progress
from tomoscout.tracking.options import Tracking
from tomoscout.tracking.record import FINGERPRINT, MODEL, RATE, STUDY, Curves, Record, read_record

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

WEIGHTS = "weights.safetensors"
FILES = ("model.yaml", "results.json", "metrics.csv", "training.json", "history.png", WEIGHTS)
"""Files of a finished model folder that are recorded as artifacts. The weights of trials are not recorded, as there may
be a thousand trials."""

FILES_DIGEST = "tomoscout.files"
"""Tag with the digest of the recorded files."""

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    # An open connection would continue to use a database file that was deleted meanwhile.
    "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool",
}
"""Environment variables for MLflow; those that the user has set take precedence."""

ATTEMPTS = 3
LOCK_SECONDS = 20.0
"""How often a locked SQLite database is tried, and for how long each time."""


def default_uri(results: Path) -> str:
    """The store where none is given: `mlflow.db` in the folder of the results, with its artifacts in `mlruns`."""
    return f"sqlite:///{results / 'mlflow.db'}"


def address(tracking: Tracking, default_uri: str) -> str:
    """The address of the store; for `$NAME`, the value of that environment variable.

    Raises:
        TomoscoutError: the variable is not set.
    """
    uri = tracking.uri or default_uri
    if not uri.startswith("$"):
        return uri
    name = uri.removeprefix("$").strip("{}")
    if not os.environ.get(name):
        raise TomoscoutError(f"tracking.uri: the environment has no variable {name}, expected an address in it")
    return os.environ[name]


def sync(folder: Path, tracking: Tracking, default_uri: str) -> str:
    """Record a model folder in MLflow, finished or not; returns the id of the MLflow run.

    The operation is idempotent: recorded points are not recorded again. The run is found by the training's fingerprint
    and name. If its curves differ from the folder's, the training was restarted from its beginning, and gets a new run.

    Raises:
        TomoscoutError: the folder holds no training, or the store refuses, stays locked or cannot be reached.
    """
    record = read_record(folder)
    uri = address(tracking, default_uri)
    attempt = 1
    while True:
        try:
            with _quiet_mlflow():
                return _add(record, uri, tracking.experiment)
        except TomoscoutError:
            raise
        except Exception as error:
            why = reason(error)
            if attempt == ATTEMPTS or "database is locked" not in why:
                raise TomoscoutError(f"tracking: {without_passwords(uri)}: {why}") from None
        time.sleep(random.uniform(0.1, 0.2) * LOCK_SECONDS)
        attempt += 1


def sync_all(folders: Sequence[Path], tracking: Tracking, default_uri: str) -> dict[str, str]:
    """Record several folders as `sync` does; returns name of the folder → id of the MLflow run. Trials that ended
    before their first validation are left out: there is nothing to record of them.

    Raises:
        TomoscoutError: the store refuses, stays locked or cannot be reached.
    """
    progress = Progress(len(folders))
    runs = {}
    for number, folder in enumerate(folders, 1):
        if (folder / "training.json").exists():
            runs[folder.name] = sync(folder, tracking, default_uri)
            progress.show(number, f"recorded {folder.name}")
    return runs


def reason(error: BaseException) -> str:
    """The root cause of an error, in one line: MLflow wraps errors in its own exceptions."""
    while inner := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = inner
    text = " ".join(without_passwords(str(error)).split())
    return f"{text[:300]} ({type(error).__name__})"


@contextlib.contextmanager
def _quiet_mlflow() -> Iterator[None]:
    """Context in which MLflow sends no telemetry, prints nothing and does not wait for long."""
    added = {name: value for name, value in SETTINGS.items() if name not in os.environ}
    disabled = logging.root.manager.disable
    os.environ.update(added)
    logging.disable()
    try:
        yield
    finally:
        logging.disable(disabled)
        for name in added:
            os.environ.pop(name, None)


def _add(record: Record, uri: str, experiment: str) -> str:
    from mlflow.entities import Metric, Param, RunTag

    client = _connect(uri)
    run, known = _find_run(client, _experiment_id(client, experiment, uri), record)
    run_id: str = run.info.run_id
    client.log_batch(
        run_id,
        metrics=[
            Metric(name, value, record.moment(step), step)
            for name, points in record.curves.items()
            for step, value in points.items()
            if step not in known.get(name, {})
        ],
        # MLflow refuses to change parameters: those recorded first stay.
        params=[Param(name, value) for name, value in record.params.items() if name not in run.data.params],
        tags=[RunTag(name, value) for name, value in record.tags.items() if run.data.tags.get(name) != value],
        synchronous=True,
    )
    if record.finished:
        _add_files(client, run, record)
    if record.ended is not None and run.info.status != "FINISHED":
        client.set_terminated(run_id, "FINISHED", int(1000 * record.ended))
    return run_id


def _find_run(client: MlflowClient, experiment_id: str, record: Record) -> tuple[Run, Curves]:
    """The run of a training, created if there is none, and the points that it holds."""
    for run in client.search_runs([experiment_id], f"tags.`{FINGERPRINT}` = '{record.fingerprint}'"):
        if run.data.tags.get(MODEL) != record.name:
            continue
        known = {
            name: {point.step: point.value for point in client.get_metric_history(run.info.run_id, name)}
            for name in record.curves
            if name in run.data.metrics
        }
        if _agree(known, record.curves):
            return run, known
        if run.info.status == "RUNNING":
            client.set_terminated(run.info.run_id, "KILLED")
    identity = {FINGERPRINT: record.fingerprint, MODEL: record.name}
    return client.create_run(experiment_id, record.moment(0), identity, record.name), {}


def _agree(known: Mapping[str, Mapping[int, float]], curves: Curves) -> bool:
    """Whether curves are equal where both have points. The speed is not compared: it is not reproducible."""
    return all(
        math.isclose(value, curves[name].get(step, value), rel_tol=1e-9)
        for name, points in known.items()
        if name != RATE
        for step, value in points.items()
    )


def _add_files(client: MlflowClient, run: Run, record: Record) -> None:
    names = [name for name in FILES if name != WEIGHTS or STUDY not in record.tags]
    paths = [path for name in names if (path := record.folder / name).exists()]
    content = digest({path.name: digest_file(path) for path in paths})
    if run.data.tags.get(FILES_DIGEST) != content:
        for path in paths:
            client.log_artifact(run.info.run_id, str(path))
        client.set_tag(run.info.run_id, FILES_DIGEST, content)


def _experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        database = _database(uri)
        artifacts = (database.resolve().parent / "mlruns").as_uri() if database else None
        try:
            return client.create_experiment(name, artifacts)
        except MlflowException:
            # Another training may have created it meanwhile.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise TomoscoutError(
            f"tracking: {without_passwords(uri)}: the experiment '{name}' was deleted there; restore it or choose "
            "another as tracking.experiment"
        )
    return str(found.experiment_id)


def _connect(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    if path := _database(uri):
        if not path.exists():
            _make_database(path)
        # A damaged or locked file fails here at once; MLflow would retry for minutes.
        with contextlib.closing(sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    return MlflowClient(tracking_uri=uri)


def _database(uri: str) -> Path | None:
    """The file of an SQLite store."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _make_database(path: Path) -> None:
    """Create the database of a store. MLflow creates its tables without a lock, and trainings may start together: each
    makes a database elsewhere, and the first to link it into place wins."""
    from mlflow import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as elsewhere:
        made = Path(elsewhere) / "mlflow.db"
        MlflowClient(tracking_uri=f"sqlite:///{made}").search_experiments(max_results=1)
        with contextlib.suppress(FileExistsError):
            _place(made.read_bytes(), path)


def _place(content: bytes, path: Path) -> None:
    """Create a file atomically, unless it exists."""
    # The permissions of an ordinary file: temporary files are private.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".mlflow.") as folder:
        copy = Path(folder) / path.name
        with copy.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        try:
            path.hardlink_to(copy)
        except FileExistsError:
            raise
        except OSError:
            # This file system has no links: creation is not atomic.
            with path.open("xb") as handle:
                handle.write(content)
