"""The copick config: where a project lies, and its pickable objects. Read without copick."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tomoscout.machine.errors import TomoscoutError, cut, shown

EXAMPLE = Path("/path/to/copick.json")
"""The path in the documentation, which users copy."""


@dataclass(frozen=True)
class PickableObject:
    """An object of the copick config: radius in Å, colour as RGBA bytes."""

    name: str
    is_particle: bool
    label: int | None
    radius: float | None
    color: tuple[int, int, int, int]


def read_copick_config(config: Path) -> dict[str, Any]:
    """The contents of a copick config file.

    Raises:
        TomoscoutError: the file is missing, is not JSON, or has no pickable objects.
    """
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = "; that is the example's: write the path of yours under projects" if config == EXAMPLE else ""
        raise TomoscoutError(f"{config}: no such copick config{hint}") from None
    except (ValueError, RecursionError) as error:
        raise TomoscoutError(f"{config}: not a copick config ({cut(str(error))})") from None
    except OSError as error:
        raise TomoscoutError(f"{config}: not a copick config ({error.strerror})") from None
    if not isinstance(values, dict) or not isinstance(values.get("pickable_objects"), list):
        raise TomoscoutError(f"{config}: not a copick config (no list 'pickable_objects')")
    return values


def local_roots(config: Path) -> list[Path] | None:
    """The folders that hold a project: those of its data and its overlay. None if one of them is not on a local disk.

    Raises:
        TomoscoutError: as for `read_copick_config`, or a root is not a path, or its folder does not exist.
    """
    locations = _locations(config, read_copick_config(config))
    if locations is None:
        return None
    roots = []
    for key, location in locations.items():
        if not isinstance(location, str):
            raise TomoscoutError(f"{config}: {key} is {shown(location)}, expected a path")
        protocol, mark, path = location.rpartition("://")
        if mark and protocol not in ("local", "file"):
            return None
        roots.append(Path(path))
        # The first result creates the overlay, so it may be missing unless it is the only root.
        if (key != "overlay_root" or len(roots) == 1) and not roots[-1].is_dir():
            raise TomoscoutError(f"{config}: {key}: no folder {path}; is its disk mounted, and the path right?")
    return sorted(set(roots))


def _locations(config: Path, values: Mapping[str, Any]) -> dict[str, object] | None:
    """What a copick config says of the places of its data and its overlay, by key. None where the data are in remote
    storage."""
    kind = values.get("config_type", "filesystem")
    data: dict[str, object] = {}
    if kind == "mlcroissant":
        data["croissant_base_url"] = values.get("croissant_base_url") or _base_of_manifest(config, values)
        if data["croissant_base_url"] is None:
            return None
    elif kind == "filesystem":
        data["static_root"] = values.get("static_root")
    else:
        return None
    data["overlay_root"] = values.get("overlay_root")
    return {key: location for key, location in data.items() if location is not None}


def _base_of_manifest(config: Path, values: Mapping[str, Any]) -> object:
    """The folder to which the paths in a Croissant manifest refer; None where the manifest is in remote storage."""
    place = str(values.get("croissant_url")).removeprefix("file://").removeprefix("local://")
    if "://" in place:
        return None
    try:
        return json.loads(Path(place).read_text(encoding="utf-8")).get("copick:baseUrl")
    except (OSError, ValueError, AttributeError) as error:
        raise TomoscoutError(f"{config}: croissant_url: {place}: no Croissant manifest ({cut(str(error))})") from None


def read_objects(config: Path) -> dict[str, PickableObject]:
    """The pickable objects of a copick config by name, without opening the project.

    Raises:
        TomoscoutError: an object is malformed, or two have one name.
    """
    objects: dict[str, PickableObject] = {}
    for entry in read_copick_config(config)["pickable_objects"]:
        try:
            found = _object(entry)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TomoscoutError(f"{config}: a pickable object is malformed ({shown(error)})") from None
        if found.name in objects:
            raise TomoscoutError(f"{config}: two pickable objects have the name '{found.name}'; give each its own")
        objects[found.name] = found
    return objects


def _object(entry: Mapping[str, Any]) -> PickableObject:
    name, is_particle, label, radius = entry["name"], entry["is_particle"], entry.get("label"), entry.get("radius")
    if not isinstance(is_particle, bool):
        raise ValueError(f"is_particle of '{name}' is {shown(is_particle)}, expected true or false")
    if label is not None and (isinstance(label, bool) or not isinstance(label, int) or not 0 < label < 2**16):
        raise ValueError(f"label of '{name}' is {shown(label)}, expected a whole number from 1 to 65535")
    color = tuple(entry.get("color") or (100, 100, 100, 255))
    if len(color) != 4:
        raise ValueError(f"color of '{name}' is {shown(color)}, expected four numbers")
    return PickableObject(str(name), is_particle, label, None if radius is None else float(radius), color)


def create_project(folder: Path, objects: Iterable[PickableObject], name: str) -> Path:
    """Make an empty copick project in `folder`; returns its config file."""
    config = {
        "name": name,
        "description": "",
        "version": "1.31.0",
        "config_type": "filesystem",
        "user_id": "tomoscout",
        "session_id": "0",
        "overlay_root": f"local://{folder.resolve()}",
        "overlay_fs_args": {"auto_mkdir": True},
        "pickable_objects": [
            {
                "name": entry.name,
                "is_particle": entry.is_particle,
                "label": entry.label,
                "radius": entry.radius,
                "color": list(entry.color),
            }
            for entry in objects
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "copick.json"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return path
