"""The profiles: each is read by Snakemake and plans the workflow, and what the engines of clouds need reaches them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
import yte

from support.project import SmallProject

ROOT = Path(__file__).parents[2]
PROFILES = sorted(path.parent.name for path in (ROOT / "workflow/profiles").glob("*/profile.yaml"))
CLOUDS = ["kubernetes", "aws-batch"]
# Of the long tests: for these alone the plugins of clouds are installed, which each start of Snakemake would import.
PLANNED = [pytest.param(name, marks=pytest.mark.long if name in CLOUDS else ()) for name in PROFILES if name != "slurm"]

TEXT = "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
RULES = dict(re.findall(r"^rule (\w+):(.*?)(?=^\S|\Z)", TEXT, re.M | re.S))
# Those made of others have their resources.
RULES |= {name: RULES[other] for other, name in re.findall(r"^use rule (\w+) as (\w+) with:", TEXT, re.M)}
# Rules whose jobs leave the machine.
SENT = {rule for rule, text in RULES.items() if "mem_mb=" in text}

pytestmark = pytest.mark.workflow


def read_profile(name: str) -> dict[str, Any]:
    """A profile with its variables filled in, as Snakemake fills them in."""
    text = (ROOT / f"workflow/profiles/{name}/profile.yaml").read_text()
    return yte.process_yaml(text, require_use_yte=True)


def needs_plugins(name: str) -> None:
    """Skip a test where a plugin that the profile names is not installed."""
    profile = read_profile(name)
    if "executor" in profile:
        pytest.importorskip(f"snakemake_executor_plugin_{profile['executor'].replace('-', '_')}")
    if "default-storage-provider" in profile:
        pytest.importorskip(f"snakemake_storage_plugin_{profile['default-storage-provider']}")


class Volume:
    """A folder in place of the volume that all jobs mount, with a working directory as the profiles have it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.storage = root / "storage"
        self.work = root / "fs" / self.storage.relative_to("/")
        self.work.mkdir(parents=True)
        shutil.copy(ROOT / "Snakefile", self.work)
        for folder in ("workflow", "envs"):
            shutil.copytree(ROOT / folder, self.work / folder)
        project = SmallProject(self.work)
        for run in ("a", "b", "c"):
            project.add_run(run)
            project.add_picks(run, "ribosome:expert/0", [[150.0, 150.0, 120.0], [250.0, 150.0, 120.0]])
        project.configure(
            split={"train": ["a"], "validate": ["b"], "test": ["c"]},
            runs_per_job=3,
            train={"name": "tiny", "steps": 2, "validate_every": 2, "batch_size": 1, "patch": [16, 16, 16]}
            | {"network": {"channels": [4, 8], "strides": [2]}},
            tracking={"enabled": False},
        )

    def snakemake(self, profile: str, *arguments: str, **environment: str) -> str:
        """Run Snakemake with a profile, on this volume, and return all it printed."""
        command = [sys.executable, "-m", "snakemake", *arguments, "--configfile", "config.yaml"]
        command += ["--profile", f"workflow/profiles/{profile}", "--directory", str(self.work)]
        if "default-storage-prefix" in read_profile(profile):
            command += ["--default-storage-prefix", str(self.storage)]
            command += ["--local-storage-prefix", str(self.root), "--remote-job-local-storage-prefix", str(self.root)]
        finished = subprocess.run(
            command,
            cwd=self.work,
            env=os.environ | {"PATH": path_of_jobs()} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert finished.returncode == 0, finished.stdout
        return finished.stdout

    def planned(self, profile: str, *arguments: str) -> dict[str, tuple[int, dict[str, str]]]:
        """Threads and resources of the jobs that a dry run announces, by rule."""
        jobs = {}
        for block in re.split(r"\n\n|\n(?=\[)", self.snakemake(profile, "--dry-run", *arguments)):
            rule = re.search(r"^rule (\w+):", block, re.M)
            resources = re.search(r"^    resources: (.+)", block, re.M)
            threads = re.search(r"^    threads: (\d+)", block, re.M)
            if rule and resources:
                pairs = dict(pair.split("=", 1) for pair in resources[1].split(", "))
                jobs[rule[1]] = (int(threads[1]) if threads else 1, pairs)
        return jobs


def path_of_jobs() -> str:
    return f"{Path(sys.executable).parent}:{os.environ['PATH']}"


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    return Volume(tmp_path_factory.mktemp("volume"))


@pytest.mark.parametrize("name", PROFILES)
def test_every_entry_is_explained(name: str) -> None:
    lines = (ROOT / f"workflow/profiles/{name}/profile.yaml").read_text().splitlines()
    entries = [number for number, line in enumerate(lines) if re.match(r"\w", line)]
    assert [lines[number] for number in entries if not lines[number - 1].startswith("#")] == []


@pytest.mark.parametrize("name", PLANNED)
def test_the_workflow_runs_dry(name: str, volume: Volume) -> None:
    needs_plugins(name)
    assert {"targets_runs", "train_model", "trial", "report_page"} <= set(volume.planned(name, "all", "explore"))


@pytest.mark.parametrize("name", PROFILES)
def test_only_rules_that_there_are_have_resources_set(name: str) -> None:
    profile = read_profile(name)
    assert {*profile.get("set-resources", {}), *profile.get("set-threads", {})} <= set(RULES)


@pytest.mark.parametrize("name", CLOUDS)
def test_the_local_copies_lie_in_the_working_directory(name: str) -> None:
    profile = read_profile(name)
    storage = Path(profile["default-storage-prefix"])
    for copies in ("local-storage-prefix", "remote-job-local-storage-prefix"):
        assert Path(profile[copies], "fs", storage.relative_to("/")) == Path(profile["directory"])
    assert profile["keep-storage-local-copies"] is True


# Slurm


def test_jobs_with_a_gpu_go_to_its_partition(volume: Volume) -> None:
    profile = volume.work / "workflow/profiles/slurm/profile.yaml"
    text = profile.read_text()
    values = yaml.safe_load(text)
    values["__variables__"] |= {"cpu_partition": "cpu", "gpu_partition": "gpu", "gpu_model": "pretended"}
    profile.write_text(yaml.safe_dump(values, sort_keys=False))
    try:
        planned = volume.planned("slurm", "all", "explore")
    finally:
        profile.write_text(text)
    rules = {rule: resources for rule, (_, resources) in planned.items() if rule in SENT}
    with_gpu = {rule for rule, resources in rules.items() if resources.get("gpu") == "1"}
    assert with_gpu == {"train_model", "trial", "segment_runs"}
    for rule, resources in rules.items():
        expected = ("gpu", "pretended") if rule in with_gpu else ("cpu", None)
        assert (resources["slurm_partition"], resources.get("gpu_model")) == expected, rule


@pytest.mark.long
def test_every_attempt_gets_more_up_to_what_there_is(volume: Volume) -> None:
    # The link by which a clone knows the profile's name.
    assert (ROOT / "slurm").readlink() == Path("workflow/profiles/slurm")
    arguments = ("explore", "--attempt")
    first, second, last = (volume.planned("slurm", *arguments, number)["trial"][1] for number in ("1", "2", "9"))
    for resource, most in {"mem_mb": 256_000, "runtime": 24 * 60}.items():
        assert int(second[resource]) == 2 * int(first[resource])
        assert int(last[resource]) == most


# AWS Batch


@pytest.mark.long
def test_aws_batch_can_meet_every_request(volume: Volume) -> None:
    needs_plugins("aws-batch")
    from snakemake_executor_plugin_aws_batch.constant import VALID_RESOURCES_MAPPING

    for attempt in ("1", "4"):
        planned = volume.planned("aws-batch", "all", "explore", "--cores", "64", "--attempt", attempt)
        jobs = {rule: job for rule, job in planned.items() if rule in SENT}
        for threads, resources in jobs.values():
            assert threads in VALID_RESOURCES_MAPPING[int(resources["mem_mb"])]
        # The plugin reads `_gpus`, the rules say `gpu`.
        on_gpu = {rule for rule, (_, resources) in jobs.items() if resources.get("gpu") == "1"}
        assert on_gpu == {"train_model", "segment_runs", "trial"}
        assert {rule for rule, (_, resources) in jobs.items() if resources.get("_gpus") == "1"} == on_gpu


def test_aws_batch_has_memory_set_for_all_jobs() -> None:
    profile = read_profile("aws-batch")
    assert {rule for rule, resources in profile["set-resources"].items() if "mem_mb" in resources} == SENT


# Kubernetes


class Cluster(ThreadingHTTPServer):
    """What the executor uses of the Kubernetes API, on loopback. The command of a Job runs on this machine, in an empty
    folder; the volume is the same folder for all. The first pod of each rule in `lost` is killed."""

    def __init__(self, folder: Path, lost: set[str]) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.folder = folder
        self.lost = lost
        self.jobs: dict[str, tuple[dict[str, Any], subprocess.Popen[bytes]]] = {}
        self.kubeconfig = folder / "kubeconfig"
        name = "loopback"
        values = {
            "clusters": [{"name": name, "cluster": {"server": f"http://127.0.0.1:{self.server_port}"}}],
            "users": [{"name": name, "user": {}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
            "current-context": name,
        }
        self.kubeconfig.write_text(yaml.safe_dump(values))

    def start(self, job: dict[str, Any]) -> int:
        """Take a Job; returns the status of the answer."""
        [container] = job["spec"]["template"]["spec"]["containers"]
        asked, limits = (container["resources"].get(kind, {}) for kind in ("requests", "limits"))
        # As the real one does.
        if any("/" in kind and limits.get(kind) != amount for kind, amount in asked.items()):
            return 422
        pod = self.folder / job["metadata"]["name"]
        pod.mkdir()
        with (pod / "output").open("wb") as output:
            running = subprocess.Popen(
                [*container["command"], *container["args"]],
                cwd=pod,
                env=os.environ | {"PATH": path_of_jobs()},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.jobs[pod.name] = (job, running)
        if (rule := rule_of(container)) in self.lost:
            self.lost.remove(rule)
            running.kill()
        return 201

    def status(self, name: str) -> dict[str, Any]:
        """Of a Job."""
        code = self.jobs[name][1].poll()
        return {"active": 1} if code is None else {"failed" if code else "succeeded": 1}

    def pod(self, name: str) -> dict[str, Any]:
        """The pod of a Job."""
        code = self.jobs[name][1].poll()
        state = {"running": {}} if code is None else {"terminated": {"exitCode": code}}
        container = {"name": "snakemake", "image": "", "imageID": "", "ready": False, "restartCount": 0, "state": state}
        return {"metadata": {"name": name}, "status": {"containerStatuses": [container]}}

    def containers(self) -> list[dict[str, Any]]:
        """The containers that ran."""
        return [job["spec"]["template"]["spec"]["containers"][0] for job, _ in self.jobs.values()]


def rule_of(container: dict[str, Any]) -> str:
    """The rule that a container runs."""
    return re.search(r"--allowed-rules (\w+)", container["args"][-1])[1]


class Request(BaseHTTPRequestHandler):
    server: Cluster

    def do_POST(self) -> None:
        value = self.body()
        self.answer(value, self.server.start(value) if self.path.endswith("/jobs") else 201)

    def do_DELETE(self) -> None:
        self.body()
        self.answer({"kind": "Status"})

    def do_GET(self) -> None:
        if job := re.search(r"/jobs/([^/]+)/status", self.path):
            self.answer({"status": self.server.status(job[1])})
        elif pod := re.search(r"job-name%3D([^&]+)", self.path):
            self.answer({"items": [self.server.pod(pod[1])]})
        elif pod := re.search(r"/pods/([^/]+)/log", self.path):
            # Pods are not restarted: there is no log of an earlier container.
            text = (self.server.folder / pod[1] / "output").read_text()
            self.answer(text, 400 if "previous=True" in self.path else 200)

    def body(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, value: Any, status: int = 200) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def cluster_in(folder: Path, lost: set[str]) -> Iterator[Cluster]:
    with Cluster(folder, lost) as cluster:
        Thread(target=cluster.serve_forever, daemon=True).start()
        try:
            yield cluster
        finally:
            cluster.shutdown()
            for _, running in cluster.jobs.values():
                running.kill()
                running.wait()


@pytest.mark.long
@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync, with which the storage fs copies, is not installed")
def test_kubernetes_jobs_get_their_gpu_and_find_their_files(tmp_path: Path) -> None:
    needs_plugins("kubernetes")
    volume = Volume(tmp_path)
    pods = tmp_path / "pods"
    pods.mkdir()
    with cluster_in(pods, lost={"split_runs"}) as cluster:
        arguments = ("--seconds-between-status-checks", "1", "--latency-wait", "1")
        volume.snakemake("kubernetes", "train", *arguments, KUBECONFIG=str(cluster.kubeconfig))
        containers = cluster.containers()
    assert sorted(map(rule_of, containers)) == ["split_runs", "split_runs", "targets_runs", "train_model"]
    limits = {rule_of(container): container["resources"]["limits"] for container in containers}
    assert limits["train_model"]["nvidia.com/gpu"] == "1"
    assert limits["train_model"]["memory"] == "32000M"
    assert "nvidia.com/gpu" not in limits["targets_runs"]
    # The second attempt.
    assert limits["split_runs"]["memory"] == "2000M"
    for container in containers:
        assert {"name": "tomoscout", "mountPath": "/fs"} in container["volumeMounts"]
        assert container["image"] == read_profile("kubernetes")["container-image"]
    # What Snakemake tracks lies with what it does not.
    model = volume.work / "results/models/tiny"
    assert (model / "weights.safetensors").exists()
    assert (model / "training.json").exists()
    assert (volume.work / "results/targets/targets/demo/a.json").exists()
    assert "Nothing to be done" in volume.snakemake("kubernetes", "train", "--dry-run")
