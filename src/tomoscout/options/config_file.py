"""Configuration files as they are written: what YAML would drop or change without a word is told.

YAML keeps the last of two sections of one name, and reads `007` as 7, `2024_01` as 202401, `no` as false.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tomoscout.machine.errors import TomoscoutError, cut
from tomoscout.machine.files import read_text

KeyPath = tuple[str, ...]
"""Keys and places in lists, from the outermost on; of a key itself, and not what it stands for, the last is `[key]`."""

MOST_NODES = 1_000_000
"""Values that a file may hold, those that aliases repeat included."""


class WrittenNumber(int):
    """A whole number that is written as Python would not write it, such as 007: where a name is expected, the name is
    lost."""

    text: str


@dataclass(frozen=True)
class ConfigFile:
    """What a file holds. `texts`: every plain value as it is written, with its line, by the path of its key."""

    path: Path
    values: Any
    texts: dict[KeyPath, tuple[str, int]]

    def written(self, place: Sequence[str | int], value: object) -> tuple[str, int] | None:
        """How a value is written, and in which line; None where it is not from here."""
        path = tuple(map(str, place))
        if path in self.texts or path[-1:] != ("[key]",):
            return self.texts.get(path)
        # A key that is not text stands in the path as what YAML made of it.
        for known, (text, line) in self.texts.items():
            if known[:-2] == path[:-2] and known[-1] == "[key]" and yaml.safe_load(text) == value:
                return text, line
        return None


class _Loader(yaml.SafeLoader):
    """Plain values, among them tuples as Python's writers of YAML mark them, which are lists."""


def _sequence(loader: _Loader, node: yaml.SequenceNode) -> list[Any]:
    return loader.construct_sequence(node, deep=True)


def _whole_number(loader: _Loader, node: yaml.ScalarNode) -> int:
    value = loader.construct_yaml_int(node)
    if str(value) == node.value:
        return value
    number = WrittenNumber(value)
    number.text = node.value
    return number


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _sequence)
_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


def read_config_file(path: Path) -> ConfigFile:
    """Read a YAML or JSON file.

    Raises:
        TomoscoutError: it is missing, is neither, holds a key twice, or more than a configuration can.
    """
    if not path.exists():
        raise TomoscoutError(f"{path}: no such configuration file")
    text = read_text(path)
    try:
        return _read_json(path, text) or _read_yaml(path, text)
    except yaml.YAMLError as error:
        raise TomoscoutError(f"{path}: not valid YAML ({cut(str(error), 500)})") from None
    except RecursionError:
        raise TomoscoutError(f"{path}: nested too deeply for a configuration") from None
    except ValueError as error:
        raise TomoscoutError(f"{path}: a value cannot be read ({cut(str(error), 300)})") from None


def _read_json(path: Path, text: str) -> ConfigFile | None:
    """JSON as it is, before YAML sees it, which takes 1e-05 for text. None for what is no JSON."""

    def refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise TomoscoutError(f"{path}: '{cut(twice)}' stands there twice; of the two, only one would count")
        return values

    if not text.lstrip().startswith("{"):
        return None
    try:
        return ConfigFile(path, json.loads(text, object_pairs_hook=refuse_twice), {})
    except ValueError:
        return None


def _read_yaml(path: Path, text: str) -> ConfigFile:
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return ConfigFile(path, None, {})
        _check_size(path, root)
        texts: dict[KeyPath, tuple[str, int]] = {}
        _survey(path, root, (), texts)
        return ConfigFile(path, loader.construct_document(root), texts)
    finally:
        loader.dispose()


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _check_size(path: Path, root: yaml.Node) -> None:
    """Refuse aliases that repeat a value inside of itself, or so often that there would be no end of it."""
    sizes: dict[int, int | None] = {}

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = None
            sizes[id(node)] = 1 + sum(size(child) for child in _children(node))
        found = sizes[id(node)]
        if found is None:
            raise TomoscoutError(f"{path}, line {_line(node)}: an alias stands inside of what it repeats")
        return found

    if size(root) > MOST_NODES:
        raise TomoscoutError(f"{path}: holds more than {MOST_NODES:,} values, those that aliases repeat included")


def _survey(path: Path, node: yaml.Node, place: KeyPath, texts: dict[KeyPath, tuple[str, int]]) -> None:
    """Note every plain value, and refuse keys that stand in a mapping twice."""
    if isinstance(node, yaml.ScalarNode):
        texts[place] = node.value, _line(node)
    elif isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            _survey(path, child, (*place, str(index)), texts)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name = str(key.value)
            if name in lines:
                where = ".".join((*place, name))
                raise TomoscoutError(
                    f"{path}: '{cut(where)}' stands there twice, in lines {lines[name]} and {_line(key)}; of the two, "
                    "only one would count"
                )
            lines[name] = _line(key)
            texts[*place, name, "[key]"] = name, _line(key)
            _survey(path, value, (*place, name), texts)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def as_written(value: Any, written: Any) -> Any:
    """A value that somebody else read from a file, or merged from several, with its numbers as `written` there."""
    if isinstance(value, dict) and isinstance(written, dict):
        keys = {key: key for key in written}
        return {keys.get(key, key): as_written(part, written.get(key)) for key, part in value.items()}
    if isinstance(value, list | tuple) and isinstance(written, list) and len(value) == len(written):
        return [as_written(*pair) for pair in zip(value, written, strict=True)]
    return written if isinstance(written, WrittenNumber) and written == value else value
