"""Configuration files as they are written: reports what YAML would drop or change silently.

YAML keeps only the last of two sections with the same name, and reads `007` as 7, `2024_01` as 202401, `no` as false.
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
"""Keys and indices of lists, outermost first. The path of a key itself, not of its value, ends in `[key]`."""

MOST_NODES = 1_000_000
"""Largest number of values in a file, including those that aliases repeat."""


class WrittenNumber(int):
    """An integer written in another form than Python's, such as 007. `text` keeps that form, which matters where a name
    is expected."""

    text: str


@dataclass(frozen=True)
class ConfigFile:
    """The content of a file. `texts`: path of a key → its scalar value as written, and the line."""

    path: Path
    values: Any
    texts: dict[KeyPath, tuple[str, int]]

    def written(self, place: Sequence[str | int], value: object) -> tuple[str, int] | None:
        """The value at a path as it is written, and its line; None if it is not from this file."""
        path = tuple(map(str, place))
        if path in self.texts or path[-1:] != ("[key]",):
            return self.texts.get(path)
        # A key that YAML does not read as text is in the path in its converted form.
        for known, (text, line) in self.texts.items():
            if known[:-2] == path[:-2] and known[-1] == "[key]" and yaml.safe_load(text) == value:
                return text, line
        return None


class _Loader(yaml.SafeLoader):
    """A safe loader that reads sequences tagged as Python tuples as lists, and integers in unusual forms as
    `WrittenNumber`."""


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
        TomoscoutError: it is missing, is neither, holds a duplicate key, or is too large for a configuration.
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
    """Read JSON; None if the text is not JSON. YAML is not used for it, as it reads 1e-05 as text."""

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
    """Refuse recursive aliases, and files with more than `MOST_NODES` values when aliases are expanded."""
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
    """Collect every scalar value in `texts`, and refuse duplicate keys of a mapping."""
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
    """A value that another program has read from a file, or merged from several, with its numbers replaced by those of
    `written`."""
    if isinstance(value, dict) and isinstance(written, dict):
        keys = {key: key for key in written}
        return {keys.get(key, key): as_written(part, written.get(key)) for key, part in value.items()}
    if isinstance(value, list | tuple) and isinstance(written, list) and len(value) == len(written):
        return [as_written(*pair) for pair in zip(value, written, strict=True)]
    return written if isinstance(written, WrittenNumber) and written == value else value
