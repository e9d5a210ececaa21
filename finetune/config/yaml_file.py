"""YAML files: read as the schema understands them, strictly; written from a config. The only module that imports
yaml."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from ..common.errors import UserError
from ..common.files import expand
from .schema import Config
from .values import _known

_MAX_YAML_BYTES = 1_000_000
_MAX_YAML_DEPTH = 4  # ours has 2; PyYAML takes 40 s for 50 kB of "["


def load_yaml(path: str | Path, config: Config) -> Config:
    """Write the keys of a YAML file into `config` and return it.

    Raises UserError `FILE:LINE: ...` for anything but one plain mapping of sections: unknown or repeated keys, wrong
    types, tags such as !!python/object, aliases, several documents, wrong encoding.
    """
    seen: dict[str, int] = {}
    for section_node, body in _mapping(_yaml_root(path), str(path)):
        section = section_node.value
        where = f"{path}:{section_node.start_mark.line + 1}"
        _known(section, [f.name for f in dataclasses.fields(config)], where, "section")
        if isinstance(body, yaml.ScalarNode) and _is_null(body):
            continue  # a section whose keys are all commented out
        for key_node, value_node in _mapping(body, where):
            key, line = f"{section}.{key_node.value}", key_node.start_mark.line + 1
            where = f"{path}:{line}"
            if key in seen:
                raise UserError(where, f"{key} stands twice (also in line {seen[key]})", "keep one of them")
            seen[key] = line
            several = isinstance(getattr(getattr(config, section), key_node.value, None), tuple)
            config.set(key, _text_of(value_node, key, several, where), where)
    return config


def _text_of(node: yaml.Node, key: str, several: bool, where: str) -> str | None:
    """A YAML value as the text a flag would give: None for null, a list, where the key takes one, joined by commas."""
    if several and isinstance(node, yaml.SequenceNode) and all(isinstance(i, yaml.ScalarNode) for i in node.value):
        return ",".join(item.value for item in node.value)
    if not isinstance(node, yaml.ScalarNode):
        raise UserError(where, f"{key} is a {node.id}", "write a single value")
    return None if _is_null(node) else node.value


def load_plain_yaml(path: str | Path) -> Any:
    """A YAML or JSON file of dicts, lists and texts; every scalar is the text that stands there, `no` and `1e-4` too.

    Raises UserError as `load_yaml`.
    """
    def plain(node: yaml.Node) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return node.value
        if isinstance(node, yaml.SequenceNode):
            return [plain(item) for item in node.value]
        result: dict[str, Any] = {}
        for key, value in _mapping(node, f"{path}:{node.start_mark.line + 1}"):
            if key.value in result:
                raise UserError(f"{path}:{key.start_mark.line + 1}", f"{key.value} stands twice", "keep one of them")
            result[key.value] = plain(value)
        return result

    return plain(_yaml_root(path))


def dump_yaml(config: Config) -> str:
    """The resolved config as YAML text, readable by `load_yaml`."""
    return yaml.safe_dump(config.to_dict(), allow_unicode=True, sort_keys=False)


def _yaml_root(path: str | Path) -> yaml.Node:
    """The root node of the only document in a YAML file, with tags, aliases and odd encodings refused."""
    try:
        raw = expand(str(path)).read_bytes()
    except OSError as error:
        raise UserError(expand(str(path)), f"cannot be read ({error.strerror})", "give a YAML file") from None
    if len(raw) > _MAX_YAML_BYTES:
        raise UserError(path, f"{len(raw)} bytes is no config file", "give the path of a YAML file")
    try:
        text = raw.decode("utf-8-sig")
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_YAML_DEPTH:
                raise UserError(f"{path}:{event.start_mark.line + 1}", "nested too deeply", "compare with config.yaml")
            if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
                raise UserError(f"{path}:{event.start_mark.line + 1}", "tags and aliases are not allowed here",
                                "write plain values")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise UserError(path, f"not UTF-8 (byte {error.start})", "save it as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else path
        raise UserError(place, f"not valid YAML ({getattr(error, 'problem', None) or 'unreadable'})",
                        "compare with config.yaml") from None
    if root is None:
        raise UserError(path, "empty", "compare with config.yaml")
    return root


def _mapping(node: yaml.Node, where: str) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
    if not isinstance(node, yaml.MappingNode) or not all(isinstance(k, yaml.ScalarNode) for k, _ in node.value):
        raise UserError(where, "expected 'key: value' lines", "compare with config.yaml")
    return node.value


def _is_null(node: yaml.ScalarNode) -> bool:
    return node.style is None and node.value in ("null", "Null", "NULL", "~", "")
