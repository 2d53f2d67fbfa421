"""What the page says besides scores: the dataset, viewers, time and memory, versions; and its figures as files."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import threading
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from support.pictures import marked, noise
from support.project import SmallProject
from tomoscout.plan.dataset import overview
from tomoscout.plan.plan import Plan
from tomoscout.plan.predictions import predicted_segmentation
from tomoscout.report.citations import citations
from tomoscout.report.colours import FOUND
from tomoscout.report.dataset import describe_dataset, thumbnails
from tomoscout.report.figures import Figure, chart_style, write_figures
from tomoscout.report.learning_curve import Curve, CurveRow
from tomoscout.report.origin import origin_of
from tomoscout.report.page import write_report
from tomoscout.report.pictures import Layer, Pictures, SlicePicture, slice_image
from tomoscout.report.plots import history_charts
from tomoscout.report.serve import NEUROGLANCER, server
from tomoscout.report.usage import read_usage
from tomoscout.report.viewers import viewers

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def project(small: SmallProject) -> SmallProject:
    """Three runs: two annotated, one of them twice as wide; one not."""
    small.add_run("TS_1")
    small.add_run("TS 2;b", shape=(24, 32, 80))
    small.add_run("TS_3")
    small.add_picks("TS_1", "ribosome:expert/0", [[10, 20, 30], [100, 120, 130]])
    small.add_picks("TS 2;b", "ribosome:expert/0", [[10, 20, 30]])
    small.add_picks("TS_1", "ribosome:tomoscout/unet", [[10, 20, 30]] * 7)
    small.add_segmentation("TS_1", "membrane:expert/0", np.ones((24, 32, 40)))
    return small


def plan_of(project: SmallProject) -> Plan:
    config = project.configure(targets={"picks": ["ribosome:expert/0"], "segmentations": ["membrane:expert/0"]})
    return Plan(config, project.refresh())


# The learning curve


def test_a_learning_curve_has_a_section_and_a_figure(tmp_path: Path) -> None:
    rows = [CurveRow(50 * n, n, name, 1000 * n, [0.25 * n, None]) for n in (1, 2) for name in ("all", "ribosome")]
    curve = Curve("0", "fBeta4 of particles", ["More runs help."], rows)
    write_report(tmp_path / "report.html", "T", None, [], {}, {}, [], curve=curve)
    page = (tmp_path / "report.html").read_text()
    section = page.partition('<section id="learning-curve">')[2].partition("</section>")[0]
    assert '<a href="#learning-curve">Learning curve</a>' in page
    assert "<p>More runs help.</p>" in section
    assert "fBeta4 of particles on the validation runs" in section
    row = ["2", "ribosome", "2,000", "1", "0.500", "–"]
    assert "".join(re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", section)).endswith("".join(row))
    assert section.count("<circle") == 2
    figure = ElementTree.parse(tmp_path / "report/learning-curve/Learning-curve.svg").getroot()
    assert len(list(figure.iter(f"{SVG}circle"))) == 2


# The dataset


def test_the_overview_counts_the_annotations_of_others(project: SmallProject) -> None:
    split = {
        "folds": [{"train": ["demo/TS_1"], "validate": [], "test": ["demo/TS 2;b"]}],
        "excluded": {"demo/TS_3": ""},
    }
    found = describe_dataset(overview(plan_of(project)), split, [])
    assert found.total == 3
    assert found.tomograms == [("wbp@10.0", 10.0, 3, "24 × 32 × 40 (2), 24 × 32 × 80 (1)")]
    assert found.objects == [("ribosome", 2, 3, 1.5), ("membrane", 1, None, None)]
    assert found.runs == [
        ("demo/TS 2;b", "test", "wbp@10.0: 24 × 32 × 80", ["1", "–"]),
        ("demo/TS_1", "training", "wbp@10.0: 24 × 32 × 40", ["2", "yes"]),
        ("demo/TS_3", "left out", "wbp@10.0: 24 × 32 × 40", ["–", "–"]),
    ]


def test_the_report_depends_on_what_the_overview_shows(project: SmallProject) -> None:
    before = plan_of(project).fingerprint("report")
    project.add_picks("TS_3", "ribosome:tomoscout/unet", [[1, 2, 3]])
    assert plan_of(project).fingerprint("report") == before
    project.add_run("TS_4")
    added = plan_of(project).fingerprint("report")
    assert added != before
    project.write_tomogram("TS_4", np.random.default_rng(9).normal(size=(24, 32, 40)).astype(np.float32))
    assert plan_of(project).fingerprint("report") != added


def test_thumbnails_show_the_middle_of_every_tomogram_that_can_be_read(project: SmallProject) -> None:
    plan = plan_of(project)
    for path in (project.static / "ExperimentRuns/TS_3/VoxelSpacing10.000/wbp.zarr/0").rglob("0"):
        if path.is_file():
            path.write_bytes(b"damaged")
    pictures = thumbnails(overview(plan), plan.config.projects)
    assert [picture.caption for picture in pictures] == ["demo/TS 2;b", "demo/TS_1"]
    shown = np.asarray(Image.open(io.BytesIO(pictures[1].png)))
    slab = slice_image(project.project().read_tomogram("TS_1", "wbp@10.0")[12])
    assert shown.shape == slab.shape
    # 16 grey levels.
    assert np.abs(shown.astype(int) - slab).max() <= 16 and len(np.unique(shown)) <= 16


# Time and memory

HEAD = "s\th:m:s\tmax_rss\tmax_vms\tmean_load\tcpu_time"


def test_time_and_memory_are_summed_up_by_stage(tmp_path: Path) -> None:
    (tmp_path / "segment").mkdir()
    (tmp_path / "segment/0000.tsv").write_text(f"{HEAD}\n10.5\t0:00:10\t700.25\t900\t50\t5.25\n")
    (tmp_path / "segment/0001.tsv").write_text(f"{HEAD}\n2\t0:00:02\tNA\tNA\tNA\tNA\n")
    # Measured by a wrapper of a site; of two attempts the last counts.
    (tmp_path / "train.tsv").write_text(f"{HEAD}\tgpu_mem\n9\t0\t1\t1\t1\t1\t1\n60\t0:01:00\t1\t2\t3\t4\t1234.5\n")
    (tmp_path / "broken.tsv").write_bytes(b"\xff\xfe\x00")
    jobs = {"segment": ["segment/0000", "segment/0001", "segment/0002"], "train": ["train"], "split": ["broken"]}
    segment, train = read_usage(tmp_path, jobs)
    assert (segment.stage, segment.jobs, segment.seconds, segment.longest) == ("segment", 2, 12.5, 10.5)
    assert (segment.memory, segment.processor, segment.gpu) == (700.25, 5.25, {})
    assert (train.jobs, train.seconds, train.gpu) == (1, 60.0, {"gpu_mem": 1234.5})
    write_report(tmp_path / "page.html", "T", None, [], {}, {}, [], usage=[segment, train])
    page = (tmp_path / "page.html").read_text()
    assert ">gpu_mem</th>" in page and ">1 min 00 s</td>" in page and "Snakemake does not measure GPUs" not in page
    write_report(tmp_path / "page.html", "T", None, [], {}, {}, [], usage=[segment])
    page = (tmp_path / "page.html").read_text()
    assert "gpu_mem" not in page and "Snakemake does not measure GPUs" in page


# Viewers


def opened(project: SmallProject) -> tuple[Plan, list]:
    plan = plan_of(project)
    project.project().write_segmentation(
        "TS 2;b", predicted_segmentation(plan.config), np.ones((24, 32, 80), dtype=np.uint8), {"inputs": "x"}
    )
    return plan, viewers(plan.config, plan.records)


def test_commands_survive_odd_names(project: SmallProject) -> None:
    _, (found,) = opened(project)
    assert shlex.split(found.napari) == ["napari-copick", "run", "--config", str(project.copick)]
    program, option, commands = shlex.split(found.runs[0].chimerax)
    assert (program, option) == ("chimerax", "--cmd")
    assert commands == (
        f'copick start {project.copick}; copick open run "TS 2;b"; copick open picks "*:tomoscout/unet"'
    )


def test_of_very_many_runs_the_first_are_listed(project: SmallProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tomoscout.report.viewers.RUNS", 2)
    _, (found,) = opened(project)
    assert [run.run for run in found.runs] == ["demo/TS 2;b", "demo/TS_1"] and found.total == 3
    write_report(project.folder / "page.html", "T", None, [], {}, {}, [], viewers=[found])
    assert "The first 2 of 3 runs" in (project.folder / "page.html").read_text()


def test_neuroglancer_reads_what_the_server_gives(project: SmallProject) -> None:
    _, (found,) = opened(project)
    *command, folder = shlex.split(found.serve or "")
    assert command == ["tomoscout", "serve"] and Path(folder) == project.static
    states = [json.loads(unquote((run.neuroglancer or "").partition("#!")[2])) for run in found.runs]
    # Only the first run has predictions.
    assert [[layer["type"] for layer in state["layers"]] for state in states] == [
        ["image", "segmentation"],
        ["image"],
        ["image"],
    ]
    with serving([Path(folder)]) as port:
        for layer in states[0]["layers"]:
            url = layer["source"].removeprefix("zarr://").replace(":9000/", f":{port}/")
            with urllib.request.urlopen(f"{url}/0/.zarray") as answer:
                assert answer.headers["Access-Control-Allow-Origin"] == NEUROGLANCER
                assert json.load(answer)["shape"] == [24, 32, 80]


class serving:
    """A running server; the value of the context is its port."""

    def __init__(self, folders: list[Path]) -> None:
        self.server = server(folders, port=0)

    def __enter__(self) -> int:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return int(self.server.server_address[1])

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_the_server_gives_nothing_but_files_of_its_folders(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "one/a b.txt").write_text("one")
    (tmp_path / "other/b.txt").write_text("other")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "other/link").symlink_to(tmp_path / "one")
    with serving([tmp_path / "one", tmp_path / "other"]) as port:

        def read(path: str) -> str | int:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
                    return answer.read().decode()
            except urllib.error.HTTPError as error:
                return error.code

        assert (read("/0/a%20b.txt"), read("/1/b.txt"), read("/1/link/a%20b.txt")) == ("one", "other", "one")
        for path in (
            "/",
            "/0/",
            "/0",
            "/2/b.txt",
            "/0/../secret.txt",
            "/0/%2e%2e/secret.txt",
            "/0//etc/hostname",
            "/x/b",
        ):
            assert read(path) == 404, path


# Versions and citations


def test_every_family_of_networks_has_its_citation_once() -> None:
    from tomoscout.networks import FAMILIES

    found = citations("0.1.0", [*FAMILIES, *FAMILIES, "my_network.py"])
    assert [entry.what for entry in found] == ["tomoscout", "copick", "Snakemake", "MONAI", *FAMILIES]
    assert all(entry.doi.startswith("10.") for entry in found[1:])


def test_digests_change_with_what_they_stand_for() -> None:
    model = {"name": "unet", "network": {"family": "UNet"}, "weights": "w1", "made_with": {"torch": "2.13.0"}}
    target = {"project": "p", "run": "a", "targets": [{"segmentation": "targets:t/1@10.0", "digest": "d1"}]}
    first = origin_of([model], [target], {"x": 1})
    assert ("torch, for model unet", "2.13.0") in first.versions
    names = ["model unet: model.yaml", "model unet: weights", "targets targets:t/1@10.0, 1 runs", "configuration"]
    assert [name for name, _ in first.digests] == names
    for place, other in (
        (0, origin_of([model | {"step": 3}], [target], {"x": 1})),
        (2, origin_of([model], [target | {"targets": [target["targets"][0] | {"digest": "d2"}]}], {"x": 1})),
        (3, origin_of([model], [target], {"x": 2})),
    ):
        changed = [one != two for one, two in zip(first.digests, other.digests, strict=True)]
        assert changed == [number == place for number in range(4)]


# Figures as files


HISTORY = [{"step": n, "loss": 1 / n, "score": n / 20 if n % 3 == 0 else "", "ribosome": ""} for n in range(1, 20)]


def test_every_figure_of_the_page_is_a_file(tmp_path: Path) -> None:
    slices = [marked(f"p/TS_1, slice z = {z} (mean of 3 slices): 1 found", Layer(FOUND, "M1 2h3")) for z in (3, 4)]
    checks = Pictures([SlicePicture(noise(), "p/TS_1 (z = 3)")], [FOUND])
    path = tmp_path / "unet.html"
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/old.svg").write_text("of an earlier page")
    write_report(
        path, "T", None, HISTORY, {}, {"excluded": {"p/b": "no"}}, [], Pictures(slices, [FOUND]), checks=checks
    )
    files = sorted(
        str(file.relative_to(tmp_path / "unet")) for file in (tmp_path / "unet").rglob("*") if file.is_file()
    )
    assert files == [
        "picks/p-TS-1-slice-z-3.svg",
        "picks/p-TS-1-slice-z-4.svg",
        "targets/p-TS-1.png",
        "training/Loss.svg",
        "training/Validation-score-best-0.900-at-step-18.svg",
    ]
    page = path.read_text()
    assert sum(map(page.count, ("<img ", '<svg class="marked"', '<svg class="chart"'))) == len(files)
    assert (tmp_path / "unet" / files[2]).read_bytes() == noise()
    svg = ElementTree.parse(tmp_path / "unet" / files[0]).getroot()
    assert (svg.get("width"), svg.get("height"), svg.get("viewBox")) == ("600", "600", "0 0 32 32")
    assert base64.b64encode(noise()).decode() in (tmp_path / "unet" / files[0]).read_text()
    svg = ElementTree.parse(tmp_path / "unet" / files[3]).getroot()
    assert svg.tag == f"{SVG}svg" and (svg.get("width"), svg.get("height")) == ("840", "460")
    (loss, _) = history_charts(HISTORY)
    assert loss.path(loss.lines[0].points) in [line.get("d") for line in svg.iter(f"{SVG}path")]
    (style,) = svg.iter(f"{SVG}style")
    assert "stroke: #0b7285" in (style.text or "")


def test_styles_of_files_need_no_browser() -> None:
    style = chart_style({"explore": ("exploration.css", "exploration_chart.css")}, opacity="0.5")
    assert not set("@") & set(style)
    for word in ("var(", "calc(", "max(", "None"):
        assert word not in style
    assert "stroke-opacity: 0.3;" in style and "fill-opacity: 0.6;" in style and "stroke: #b35900" in style


def test_figures_with_one_name_are_kept_apart(tmp_path: Path) -> None:
    names = ["a/b", "a b", "<a>?b", "…"]
    write_figures(tmp_path / "new", [Figure("x", name, f"<svg>{name}".encode()) for name in names])
    files = {file.name: file.read_text() for file in (tmp_path / "new/x").iterdir()}
    assert files == {"a-b.svg": "<svg>a/b", "a-b-2.svg": "<svg>a b", "a-b-3.svg": "<svg><a>?b", "figure.svg": "<svg>…"}
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_page_of_a_hundred_runs_is_small(tmp_path: Path, small: SmallProject) -> None:
    for number in range(100):
        small.add_run(f"TS_{number:03d}", shape=(2, 160, 160))
        small.add_picks(f"TS_{number:03d}", "ribosome:expert/0", [[100.0, 100.0, 10.0]] * 50)
    plan = Plan(small.configure(), small.refresh())
    runs = overview(plan)
    pictures = thumbnails(runs, plan.config.projects)
    assert len(pictures) == 100
    # As large as the pictures of a real tomogram: 18 slices of 630 × 630.
    slices = [marked(f"demo/TS_{n:03d}", side=630) for n in range(18)]
    path = tmp_path / "page.html"
    write_report(
        path,
        "T",
        None,
        HISTORY,
        {},
        {"folds": [{"train": [record.key for record in plan.records], "validate": [], "test": []}]},
        [],
        Pictures(slices, []),
        dataset=describe_dataset(runs, {}, pictures),
        viewers=viewers(plan.config, plan.records, pictures),
    )
    page = path.read_text()
    assert page.count("chimerax --cmd") == page.count("<img ") == 100
    assert page.count('<svg class="marked"') == 18
    assert sum(len(picture.png) for picture in pictures) < 2_000_000
    assert path.stat().st_size < 12_000_000
