"""What the rules run in: images by group, and what these see of the machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tomoscout.machine.errors import TomoscoutError
from tomoscout.options.config import Config, parse_config
from tomoscout.plan.code import CODE, code, refuse_other_code
from tomoscout.plan.containers import bound, enter_images, image_of


def config_of(project: Path, **options: Any) -> Config:
    targets = {"picks": "curator/0"}
    values = {"projects": {"p": str(project)}, "tomograms": ["wbp@10.0"], "targets": targets}
    return parse_config(values | options, "my.yaml")


def copick_config(folder: Path, **roots: str) -> Path:
    folder.mkdir(parents=True)
    path = folder / "copick.json"
    path.write_text(json.dumps({"config_type": "filesystem", "pickable_objects": []} | roots))
    return path


def entered(config: Config, results: Path, environment: dict[str, str], **more: Any) -> list[str]:
    enter_images(config, [], results, environment, **more)
    return environment["APPTAINER_BIND"].split(",")


@pytest.mark.parametrize(
    ("given", "light", "network"),
    [
        (None, "/clone/containers/tomoscout-light.sif", "/clone/containers/tomoscout.sif"),
        (
            "docker://registry.example.org/own:1",
            "docker://registry.example.org/own:1",
            "docker://registry.example.org/own:1",
        ),
        ({"network": "/images/gpu.sif"}, "/clone/containers/tomoscout-light.sif", "/images/gpu.sif"),
    ],
)
def test_the_image_of_a_group(tmp_path: Path, given: Any, light: str, network: str) -> None:
    config = config_of(tmp_path / "copick.json", container=given)
    found = [image_of(config, group, Path("/clone/containers")) for group in ("light", "network")]
    assert found == [light, network]


def test_what_a_configuration_names_is_bound(tmp_path: Path) -> None:
    """Projects with all their folders, models, own networks and results lie anywhere."""
    static, overlay = tmp_path / "data" / "static", tmp_path / "overlays" / "not there yet"
    static.mkdir(parents=True)
    overlay.parent.mkdir()
    project = copick_config(tmp_path / "projects", static_root=f"local://{static}", overlay_root=f"local://{overlay}")
    model, results = tmp_path / "models" / "unet", tmp_path / "results"
    model.mkdir(parents=True)
    results.mkdir()
    config = config_of(project, segment={"models": [str(model)]})
    binds = entered(config, results, {})
    assert binds == sorted(map(str, [static, overlay.parent, project, model, results]))


def test_of_a_pattern_the_folder_is_bound(tmp_path: Path) -> None:
    project, results = copick_config(tmp_path / "projects"), tmp_path / "results"
    results.mkdir()
    (tmp_path / "boxes" / "info").mkdir(parents=True)
    for pattern in ("info/*_info.json", "inf?/TS.json", "info/TS_[12].json"):
        config = config_of(project, import_picks={"eman2": {"files": [f"{tmp_path}/boxes/{pattern}"]}})
        assert any(str(tmp_path / "boxes") in bind for bind in entered(config, results, {}))


def test_a_folder_within_a_bound_one_needs_none_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert bound([tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "c"]) == [str(tmp_path / "a")]


def test_a_link_and_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    assert bound([tmp_path / "link"]) == [str(tmp_path / "disk"), str(tmp_path / "link")]


def test_scratch_and_the_users_own_binds(tmp_path: Path) -> None:
    project = copick_config(tmp_path / "projects")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = {"APPTAINER_BIND": "/mine:/yours:ro", "TMPDIR": str(scratch)}
    binds = entered(config_of(project), tmp_path / "projects", environment)
    assert binds == ["/mine:/yours:ro", str(tmp_path / "projects"), str(scratch)]
    # A job on a cluster gets the environment of the main process, and does the same again.
    assert entered(config_of(project), tmp_path / "projects", environment) == binds


def test_a_gpu_is_passed_where_there_is_one(tmp_path: Path) -> None:
    project, driver = copick_config(tmp_path / "projects"), tmp_path / "nvidiactl"
    environment: dict[str, str] = {}
    entered(config_of(project), tmp_path, environment, driver=driver)
    assert "APPTAINER_NV" not in environment
    driver.touch()
    entered(config_of(project), tmp_path, environment, driver=driver)
    assert environment["APPTAINER_NV"] == "true"


def test_a_folder_that_would_hide_those_of_an_image(tmp_path: Path) -> None:
    project = copick_config(tmp_path / "p", static_root=f"local://{tmp_path}", overlay_root="local:///opt/not there")
    with pytest.raises(TomoscoutError, match=r"^/opt would hide what an image has there; use a folder below it$"):
        entered(config_of(project), tmp_path, {})


def test_a_name_that_cannot_be_passed(tmp_path: Path) -> None:
    (tmp_path / "a,b").mkdir()
    with pytest.raises(TomoscoutError, match="a,b: a folder with a comma or colon in its name cannot be bound"):
        bound([tmp_path / "a,b"])


def test_an_image_that_is_not_there(tmp_path: Path) -> None:
    config = config_of(copick_config(tmp_path / "projects"))
    with pytest.raises(TomoscoutError, match=r"none\.sif: no such image; build it \(make image\)"):
        enter_images(config, ["docker://registry.example.org/own:1", str(tmp_path / "none.sif")], tmp_path, {})


def test_an_image_of_other_code() -> None:
    refuse_other_code({})
    refuse_other_code({CODE: code()})
    with pytest.raises(TomoscoutError) as refused:
        refuse_other_code({CODE: "0.0.9 (stages 12345678)", "APPTAINER_CONTAINER": "/images/old.sif"})
    expected = (
        f"/images/old.sif has tomoscout {code()}, the workflow 0.0.9 (stages 12345678): build it again (make image)"
    )
    assert str(refused.value) == expected
