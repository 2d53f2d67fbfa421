"""Trainings in MLflow: all of it once, whatever interrupts; and a training that never notices."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tomoscout.machine.errors import TomoscoutError, without_passwords
from tomoscout.machine.files import write_json
from tomoscout.networks import parse_network
from tomoscout.options.names import Source
from tomoscout.plan.classes import TargetClass
from tomoscout.tasks.picking.model import PickingModel
from tomoscout.tasks.picking.options import Picking
from tomoscout.tracking import store
from tomoscout.tracking.options import Tracking
from tomoscout.tracking.store import default_uri, sync
from tomoscout.tracking.tracker import Tracker

CLASSES = ["ribosome", "µ-tubule"]
FACTS: dict[str, Any] = {
    "name": "unet",
    "fingerprint": "0123456789abcdef",
    "classes": CLASSES,
    "train": ["demo/run-1", "demo/run-2"],
    "validate": ["demo/run-3"],
    "device": "cpu",
    "versions": {"torch": "2.13.0"},
    "options": {
        "steps": 60,
        "network": {"family": "UNet", "channels": [4, 8]},
        "loss": [{"name": "Dice", "weight": 1.0}, {"name": "CrossEntropy"}],
        "class_weights": {},
        "early_stopping": None,
        "compile": False,
    },
}
TRACKING = Tracking()
WRITTEN, ENDED = 1_700_000_000, 1_700_000_007


def history(last: int, scale: float = 1.0) -> list[dict[str, float]]:
    """A row every ten steps, with scores in every second."""
    rows: list[dict[str, float]] = []
    for step in range(10, last + 1, 10):
        rows.append({"step": step, "loss": scale / (step + 0.1), "learning_rate": 1e-3 / 3})
        if step % 20 == 0:
            rows[-1] |= {"score": 0.01 * step / 3, **{name: 0.001 * step * len(name) for name in CLASSES}}
    return rows


def write_progress(folder: Path, last: int, scale: float = 1.0, rate: float | None = 4.0, **facts: Any) -> None:
    """What a training under way has in its folder."""
    Tracker(folder, Tracking(enabled=False), "", FACTS | facts).update(history(last, scale), {"steps_per_second": rate})
    os.utime(folder / "metrics.csv", (WRITTEN, WRITTEN))


def write_end(folder: Path, fingerprint: str = FACTS["fingerprint"]) -> None:
    """What a training leaves besides."""
    write_json(folder / "results.json", {"score": 0.75, "best_step": 40, "scores": {"ribosome": 0.5}, "note": "good"})
    (folder / "history.png").write_bytes(b"picture")
    (folder / "weights.safetensors").write_bytes(bytes(range(256)))
    model = PickingModel(
        name="unet",
        network=parse_network({"channels": [4, 8], "strides": [2]}),
        classes=tuple(
            TargetClass(name, label, 100.0, 80.0, (Source(name, "me", "1"),)) for label, name in enumerate(CLASSES, 1)
        ),
        thresholds=dict.fromkeys(CLASSES, 0.5),
        voxel_spacings=(10.0,),
        patch=(16, 32, 32),
        picking=Picking(),
        made_from={"fingerprint": fingerprint, "train": FACTS["train"], "validate": FACTS["validate"]},
        weights_digest="abc",
    )
    model.write(folder)
    os.utime(folder / "model.yaml", (ENDED, ENDED))


@pytest.fixture(scope="module")
def made_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with one other training in it."""
    results = tmp_path_factory.mktemp("made")
    write_progress(results / "other", 10, fingerprint="other")
    sync(results / "other", Tracking(experiment="other"), default_uri(results))
    return results / "mlflow.db"


@pytest.fixture
def results(made_store: Path, tmp_path: Path) -> Path:
    """A folder of results with a store."""
    shutil.copy(made_store, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def folder(results: Path) -> Path:
    return results / "models/unet"


def client(results: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=default_uri(results))


def runs(results: Path, fingerprint: str = FACTS["fingerprint"]) -> list[Any]:
    """MLflow's runs of a training, the oldest first."""
    found = client(results)
    experiment = found.get_experiment_by_name("tomoscout")
    wanted = f"tags.`tomoscout.fingerprint` = '{fingerprint}'"
    return list(found.search_runs([experiment.experiment_id], wanted, order_by=["attributes.start_time"]))


def points(results: Path, run_id: str) -> dict[str, list[tuple[int, float]]]:
    found = client(results)
    return {
        name: sorted((point.step, point.value) for point in found.get_metric_history(run_id, name))
        for name in found.get_run(run_id).data.metrics
    }


def expected_points(last: int, scale: float = 1.0) -> dict[str, list[tuple[int, float]]]:
    names = {"loss": "loss", "learning_rate": "learning_rate", "score": "score"}
    names |= {f"scores/{name}": name for name in CLASSES}
    rows = history(last, scale)
    return {key: [(int(row["step"]), row[name]) for row in rows if name in row] for key, name in names.items()}


def content(results: Path) -> list[str]:
    """All that the store holds, row by row."""
    with closing(sqlite3.connect(results / "mlflow.db")) as connection:
        return list(connection.iterdump())


# What is recorded


def test_a_finished_training_is_recorded_whole(folder: Path, results: Path) -> None:
    write_progress(folder, 60)
    write_end(folder)
    (folder / "checkpoint.pt").write_bytes(b"scratch")
    run_id = sync(folder, TRACKING, default_uri(results))
    (run,) = runs(results)
    assert run.info.run_id == run_id
    assert run.info.run_name == "unet"
    assert run.info.status == "FINISHED"
    assert run.data.params == {
        "steps": "60",
        "network.family": "UNet",
        "network.channels": "[4, 8]",
        "loss.0.name": "Dice",
        "loss.0.weight": "1.0",
        "loss.1.name": "CrossEntropy",
        "early_stopping": "null",
        "compile": "false",
        "classes": "ribosome, µ-tubule",
        "split.train": "demo/run-1, demo/run-2",
        "split.validate": "demo/run-3",
    }
    assert run.data.tags["tomoscout.device"] == "cpu"
    assert run.data.tags["version.torch"] == "2.13.0"
    assert run.data.tags["tomoscout.folder"] == str(folder)
    assert points(results, run_id) == expected_points(60) | {
        "steps_per_second": [(60, 4.0)],
        "result/score": [(60, 0.75)],
        "result/best_step": [(60, 40.0)],
        "result/scores/ribosome": [(60, 0.5)],
    }
    artifacts = results / "mlruns" / run_id / "artifacts"
    assert {path.name: path.read_bytes() for path in artifacts.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name != "checkpoint.pt"
    }


def test_times_are_those_of_the_training(folder: Path, results: Path) -> None:
    write_progress(folder, 60)
    write_end(folder)
    run_id = sync(folder, TRACKING, default_uri(results))
    (run,) = runs(results)
    # Sixty steps at four a second, up to when the curves were written.
    assert run.info.start_time == 1000 * (WRITTEN - 15)
    assert run.info.end_time == 1000 * ENDED
    moments = {point.step: point.timestamp for point in client(results).get_metric_history(run_id, "loss")}
    assert moments == {step: 1000 * WRITTEN - 250 * (60 - step) for step in range(10, 61, 10)}


def test_recorded_again_nothing_changes(folder: Path, results: Path) -> None:
    write_progress(folder, 60)
    write_end(folder)
    first = sync(folder, TRACKING, default_uri(results))
    before = content(results)
    assert sync(folder, TRACKING, default_uri(results)) == first
    assert content(results) == before


def test_live_and_resumed_it_stays_one_run_without_doubled_points(folder: Path, results: Path) -> None:
    write_progress(folder, 0, rate=None)
    run_id = sync(folder, TRACKING, default_uri(results))
    for last, rate in ((20, 4.0), (20, 3.0), (50, 5.0)):
        write_progress(folder, last, rate=rate, device="cuda" if last == 50 else "cpu")
        assert sync(folder, TRACKING, default_uri(results)) == run_id
        assert runs(results)[0].info.status == "RUNNING"
        assert not (results / "mlruns" / run_id).exists()
    write_progress(folder, 60, rate=4.0, device="cuda", options={"steps": 61, "new": "value"})
    write_end(folder)
    assert sync(folder, TRACKING, default_uri(results)) == run_id
    (run,) = runs(results)
    assert run.info.status == "FINISHED"
    found = points(results, run_id)
    assert found.items() >= expected_points(60).items()
    assert found["steps_per_second"] == [(20, 4.0), (50, 5.0), (60, 4.0)]
    # Where it ran last; with what it began.
    assert run.data.tags["tomoscout.device"] == "cuda"
    assert (run.data.params["steps"], run.data.params["new"]) == ("60", "value")


def test_what_was_cut_short_is_completed(folder: Path, results: Path) -> None:
    write_progress(folder, 60)
    write_end(folder)
    (results / "mlruns").write_text("in the way")
    with pytest.raises(TomoscoutError, match=r"tracking: sqlite:.*mlruns"):
        sync(folder, TRACKING, default_uri(results))
    (run,) = runs(results)
    assert run.info.status == "RUNNING"
    (results / "mlruns").unlink()
    assert sync(folder, TRACKING, default_uri(results)) == run.info.run_id
    (run,) = runs(results)
    assert run.info.status == "FINISHED"
    assert points(results, run.info.run_id).items() >= expected_points(60).items()
    artifacts = results / "mlruns" / run.info.run_id / "artifacts"
    assert (artifacts / "weights.safetensors").read_bytes() == bytes(range(256))
    # A file that changed is recorded again.
    (folder / "history.png").write_bytes(b"another picture")
    sync(folder, TRACKING, default_uri(results))
    assert (artifacts / "history.png").read_bytes() == b"another picture"


def test_started_afresh_with_another_outcome_it_gets_a_run_of_its_own(folder: Path, results: Path) -> None:
    write_progress(folder, 40)
    first = sync(folder, TRACKING, default_uri(results))
    write_progress(folder, 20, scale=2.0)
    second = sync(folder, TRACKING, default_uri(results))
    assert second != first
    write_progress(folder, 60, scale=2.0)
    write_end(folder)
    assert sync(folder, TRACKING, default_uri(results)) == second
    assert {run.info.run_id: run.info.status for run in runs(results)} == {first: "KILLED", second: "FINISHED"}
    assert points(results, first).items() >= expected_points(40).items()
    assert points(results, second).items() >= expected_points(60, scale=2.0).items()


def test_other_settings_or_another_name_are_another_training(folder: Path, results: Path) -> None:
    found = set()
    for facts in ({}, {"fingerprint": "other settings"}, {"name": "unet-2"}):
        write_progress(folder, 20, **facts)
        found.add(sync(folder, TRACKING, default_uri(results)))
    assert len(found) == 3
    found.add(sync(folder, Tracking(experiment="elsewhere"), default_uri(results)))
    assert len(found) == 4


def test_a_model_of_earlier_settings_is_left_out(folder: Path, results: Path) -> None:
    write_progress(folder, 20)
    write_end(folder, fingerprint="earlier settings")
    run_id = sync(folder, TRACKING, default_uri(results))
    (run,) = runs(results)
    assert run.info.status == "RUNNING"
    assert points(results, run_id) == expected_points(20) | {"steps_per_second": [(20, 4.0)]}


def test_a_model_folder_alone_is_enough(folder: Path, results: Path) -> None:
    folder.mkdir(parents=True)
    write_end(folder)
    sync(folder, TRACKING, default_uri(results))
    (run,) = runs(results)
    assert run.info.status == "FINISHED"
    assert run.data.params["network.channels"] == "[4, 8]"
    assert run.data.params["patch"] == "[16, 32, 32]"
    assert run.data.params["split.validate"] == "demo/run-3"
    assert "version.torch" in run.data.tags
    assert run.data.metrics["result/score"] == 0.75


def test_names_and_values_that_mlflow_refuses(folder: Path, results: Path) -> None:
    classes = ["a+b (c)", "..", "x'y", "n" * 300]
    train = [f"demo/run-{number}" for number in range(2000)]
    facts = FACTS | {"classes": classes, "train": train, "options": {"weights": {"x'y": 2}, "a/../b": 1}}
    rows = [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 0.5, **dict.fromkeys(classes, 0.25)}]
    Tracker(folder, Tracking(enabled=False), "", facts).update(rows)
    run_id = sync(folder, TRACKING, default_uri(results))
    (run,) = runs(results)
    assert run.data.params["weights.x-y"] == "2"
    assert run.data.params["split.train"].startswith("demo/run-0, demo/run-1, ")
    assert run.data.params["split.train"].endswith("…")
    found = points(results, run_id)
    assert found.pop("loss") == [(2, 0.5)]
    assert set(found) == {"scores/-", f"scores/{'n' * 243}", "scores/a-b -c-", "scores/x-y"}
    assert all(curve == [(2, 0.25)] for curve in found.values())


# What is refused


def test_a_folder_without_a_training(tmp_path: Path) -> None:
    with pytest.raises(TomoscoutError, match=r"nowhere: no training to record: neither model\.yaml nor training\.json"):
        sync(tmp_path / "nowhere", TRACKING, default_uri(tmp_path))


@pytest.mark.parametrize(
    ("name", "text"),
    [("metrics.csv", "step,loss\n1,high\n"), ("training.json", "{"), ("model.yaml", "a: [}"), ("model.yaml", "1")],
)
def test_a_damaged_folder(tmp_path: Path, name: str, text: str) -> None:
    write_progress(tmp_path / "unet", 20)
    (tmp_path / "unet" / name).write_text(text)
    with pytest.raises(TomoscoutError, match="unet") as error:
        sync(tmp_path / "unet", TRACKING, default_uri(tmp_path))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "mlflow.db").exists()


def test_stores_that_cannot_be_used(folder: Path, results: Path) -> None:
    write_progress(folder, 20)
    (results / "text.db").write_text("not a database, as its first hundred bytes tell whoever looks" * 10)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://me:secret@127.0.0.1:{closed.getsockname()[1]}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
            for uri, what in (
                (f"sqlite:///{results}/text.db", "file is not a database"),
                (f"sqlite:///{results}/text.db/mlflow.db", "File exists"),
                (nobody, "Connection refused"),
            ):
                # With a password only a variable of the environment may hold an address.
                patch.setenv("SERVER", uri)
                with pytest.raises(TomoscoutError, match=what) as error:
                    sync(folder, Tracking(uri="$SERVER"), "")
                assert str(error.value).startswith(f"tracking: {uri.replace('me:secret@', '')}: ")
                assert "secret" not in str(error.value)
                assert "\n" not in str(error.value)


def test_an_address_in_the_environment(folder: Path, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_progress(folder, 20)
    monkeypatch.delenv("SERVER", raising=False)
    with pytest.raises(TomoscoutError, match=r"^tracking\.uri: the environment has no variable SERVER, expected an"):
        sync(folder, Tracking(uri="$SERVER"), "")
    monkeypatch.setenv("SERVER", default_uri(results))
    assert sync(folder, Tracking(uri="${SERVER}"), "") == sync(folder, TRACKING, default_uri(results))


def test_passwords_are_taken_out_of_messages() -> None:
    for text in ("https://me:hush@h/a", "https://me:hu/sh@h", "see https://hush@h and", "http://h?password=hush&a=1"):
        assert "hush" not in without_passwords(text)
        assert "sh@" not in without_passwords(text)
    assert (
        without_passwords("sqlite:////home/a@b/mlflow.db, file:///a:1@b")
        == "sqlite:////home/a@b/mlflow.db, file:///a:1@b"
    )


def test_a_deleted_experiment(folder: Path, results: Path) -> None:
    write_progress(folder, 20)
    sync(folder, TRACKING, default_uri(results))
    found = client(results)
    found.delete_experiment(found.get_experiment_by_name("tomoscout").experiment_id)
    with pytest.raises(TomoscoutError, match="the experiment 'tomoscout' was deleted there; restore it or choose"):
        sync(folder, TRACKING, default_uri(results))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """A database that another process is writing to."""
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


def test_a_database_that_stays_locked(folder: Path, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LOCK_SECONDS", 0.01)
    write_progress(folder, 20)
    with locked(results / "mlflow.db"), pytest.raises(TomoscoutError, match="database is locked"):
        sync(folder, TRACKING, default_uri(results))
    sync(folder, TRACKING, default_uri(results))
    assert len(runs(results)) == 1


def test_a_lock_is_waited_for(folder: Path, results: Path) -> None:
    write_progress(folder, 20)
    recording = threading.Thread(target=sync, args=(folder, TRACKING, default_uri(results)))
    with locked(results / "mlflow.db"):
        recording.start()
    recording.join()
    assert len(runs(results)) == 1


def test_mlflow_reports_to_nobody_and_prints_nothing(folder: Path, results: Path, tmp_path: Path) -> None:
    """In a process of its own, since MLflow sends nothing from within a test anyway."""
    write_progress(folder, 20)
    script = (
        "import os, sys, pathlib, tomoscout.tracking.store as t, tomoscout.tracking.options as o\n"
        "before = dict(os.environ)\n"
        f"t.sync(pathlib.Path({str(folder)!r}), o.Tracking(), {default_uri(results)!r})\n"
        "from mlflow.telemetry.client import get_telemetry_client\n"
        "print(get_telemetry_client(), 'git' in sys.modules, 'torch' in sys.modules, dict(os.environ) == before)"
    )
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=home,
        env={"PATH": os.environ["PATH"], "HOME": str(home)},
    )
    assert (done.stdout, done.stderr) == ("None False False True\n", "")
    assert not list(home.iterdir())


def test_a_server(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's own server, in this process, with artifacts through it."""
    monkeypatch.setenv("_MLFLOW_SERVER_SERVE_ARTIFACTS", "true")
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", str(tmp_path / "artifacts"))
    from mlflow.server import app, handlers
    from werkzeug.serving import make_server

    handlers.initialize_backend_stores(default_uri(tmp_path), default_artifact_root="mlflow-artifacts:/")
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        tracking = Tracking(uri=f"http://127.0.0.1:{server.server_port}")
        write_progress(folder, 20)
        run_id = sync(folder, tracking, "")
        write_progress(folder, 60)
        write_end(folder)
        assert sync(folder, tracking, "") == run_id
        before = content(tmp_path)
        assert sync(folder, tracking, "") == run_id
    finally:
        server.shutdown()
        thread.join()
    assert content(tmp_path) == before
    assert points(tmp_path, run_id).items() >= expected_points(60).items()
    (weights,) = (tmp_path / "artifacts").rglob("weights.safetensors")
    assert weights.read_bytes() == bytes(range(256))


# Live, with processes of their own


@pytest.fixture
def hanging() -> Iterator[socket.socket]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(600)
        yield server


def address(server: socket.socket) -> str:
    return f"http://127.0.0.1:{server.getsockname()[1]}"


def assert_ended(connection: socket.socket) -> None:
    """The process at the other end is no more: it would never close the connection itself."""
    connection.settimeout(600)
    while connection.recv(4096):
        pass


def test_a_training_does_not_wait_for_a_store_that_hangs(
    folder: Path, hanging: socket.socket, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")
    with Tracker(folder, Tracking(uri=address(hanging)), "", FACTS, pause=0) as tracker:
        tracker.update(history(20))
        connection, _ = hanging.accept()
        tracker.update(history(40))
        with (folder / "metrics.csv").open(newline="") as handle:
            assert [int(row["step"]) for row in csv.DictReader(handle)] == [10, 20, 30, 40]
    assert_ended(connection)
    # The second update started nothing beside the first.
    hanging.setblocking(False)
    with pytest.raises(BlockingIOError):
        hanging.accept()
    assert capfd.readouterr().err == ""


def test_nor_for_a_lock(folder: Path, results: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with locked(results / "mlflow.db"):
        with Tracker(folder, TRACKING, default_uri(results), FACTS, pause=0) as tracker:
            for last in range(20, 61, 20):
                tracker.update(history(last), {"steps_per_second": 4.0})
        assert runs_are_unknown(results)
    write_end(folder)
    tracker.finish(600)
    (run,) = runs(results)
    assert run.info.status == "FINISHED"
    assert points(results, run.info.run_id).items() >= expected_points(60).items()
    assert capfd.readouterr().err == ""


def runs_are_unknown(results: Path) -> bool:
    """Whether the store is still locked: it cannot even be read."""
    with closing(sqlite3.connect(results / "mlflow.db", timeout=0)) as connection:
        try:
            connection.execute("SELECT count(*) FROM runs").fetchone()
        except sqlite3.OperationalError:
            return True
    return False


def test_killed_it_leaves_no_process(folder: Path, hanging: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")
    script = (
        "import json, pathlib, sys, tomoscout.tracking.tracker as t, tomoscout.tracking.options as o\n"
        "folder, uri, facts = json.loads(sys.argv[1])\n"
        "t.Tracker(pathlib.Path(folder), o.Tracking(uri=uri), '', facts).update([])\n"
        "sys.stdin.read()"
    )
    order = json.dumps([str(folder), address(hanging), FACTS])
    training = subprocess.Popen([sys.executable, "-c", script, order], stdin=subprocess.PIPE)
    connection, _ = hanging.accept()
    training.send_signal(signal.SIGKILL)
    training.communicate()
    assert_ended(connection)


@pytest.mark.usefixtures("made_store")
def test_four_trainings_at_once_make_and_share_a_database(tmp_path: Path) -> None:
    """Forked with MLflow loaded, so that all are ready at the same moment."""
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(4)

    def record(folder: Path) -> None:
        ready.wait()
        sync(folder, TRACKING, default_uri(tmp_path))

    folders = [tmp_path / f"models/unet-{number}" for number in range(4)]
    for folder in folders:
        write_progress(folder, 60, name=folder.name)
    children = [context.Process(target=record, args=(folder,)) for folder in folders]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0, 0]
    found = runs(tmp_path)
    assert sorted(run.info.run_name for run in found) == [folder.name for folder in folders]
    for run in found:
        assert points(tmp_path, run.info.run_id).items() >= expected_points(60).items()
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db", "models"}


def test_a_failure_is_one_warning(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an MLflow that cannot be imported."""
    (tmp_path / "mlflow.py").write_text("raise ImportError('no such library')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    tracker = Tracker(folder, TRACKING, default_uri(tmp_path / "new"), FACTS, pause=0)
    tracker.update(history(20))
    tracker.finish(600)
    tracker.finish(600)
    assert capfd.readouterr().err.splitlines() == [
        f"warning: not recorded in MLflow: {default_uri(tmp_path / 'new')}: no such library (ImportError); the "
        "training goes on, `tomoscout track` records it later"
    ]


def test_a_record_that_hangs_is_given_up(
    folder: Path, hanging: socket.socket, capfd: pytest.CaptureFixture[str]
) -> None:
    write_progress(folder, 20)
    Tracker(folder, Tracking(uri=address(hanging)), "", FACTS, limit=0.1).finish(600)
    assert "not recorded in MLflow: no end after 0.1 s; the training goes on" in capfd.readouterr().err


def test_a_folder_that_cannot_be_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "unet").write_text("not a folder")
    with Tracker(tmp_path / "unet", TRACKING, default_uri(tmp_path), FACTS, pause=0) as tracker:
        tracker.update(history(20))
        tracker.update(history(40))
    assert capfd.readouterr().err.count("warning: not recorded in MLflow: ") == 1


def test_turned_off_nothing_is_started(tmp_path: Path) -> None:
    with Tracker(tmp_path / "unet", Tracking(enabled=False), default_uri(tmp_path), FACTS, pause=0) as tracker:
        tracker.update(history(20))
        tracker.finish(600)
    assert {path.name for path in tmp_path.iterdir()} == {"unet"}
    assert {path.name for path in (tmp_path / "unet").iterdir()} == {"metrics.csv", "training.json"}
