"""YAML files, read strictly by the schema's types; the resolved config as YAML. The only module that imports yaml."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ..common.errors import UserError
from ..common.files import expand, read_regular
from .schema import Config
from .yaml_slips import find_slip, unquoted

_MAX_YAML_BYTES = 1_000_000
_MAX_YAML_DEPTH = 5  # a config has 2, a template 5; PyYAML takes 40 s for 50 kB of "["
_COMPARE = "compare with config.yaml"
_PLAIN = "write lists and 'key: value' lines"
_BACKSLASHES = r"in double quotes \ begins an escape: write a Windows path in single quotes, 'D:\data', or with /"
_FIXES = {  # words of the parser -> what it mostly comes from
    "escape": _BACKSLASHES,
    "mapping values are not allowed": "indent it as the lines around it; a value that holds ': ' needs quotes",
}


def load_yaml(path: str | Path, config: Config) -> Config:
    """Write the keys of a YAML file into `config` and return it.

    Raises:
        UserError: `FILE:LINE: ...` for anything but one plain mapping of sections: unknown or repeated keys, wrong
            types, tags such as !!python/object, aliases, several documents, wrong encoding.
    """
    try:
        return _load(path, config)
    except UserError as error:
        raise _likely_cause(path, error) from None


def _load(path: str | Path, config: Config) -> Config:
    first_line: dict[str, str] = {}
    for section, where, body in _entries(_yaml_root(path), path, str(path)):
        config.check_section(section, where)
        entries = [] if _is_null(body) else _entries(body, path, where)  # null: all keys of the section commented out
        for name, where_key, node in entries:
            key = f"{section}.{name}"
            _check_new(key, where_key, first_line)
            takes_list = isinstance(getattr(getattr(config, section), name, None), tuple)
            config.set(key, _text_of(node, key, takes_list, where_key), where_key)
    return config


def _check_new(key: str, where: str, first_line: dict[str, str]) -> None:
    """Raise UserError for a repeated key; else note its line."""
    if key in first_line:
        raise UserError(where, f"{key} appears twice (also in line {first_line[key]})", "keep one of them")
    first_line[key] = where.rpartition(":")[2]


def load_plain_yaml(path: str | Path, fix: str = _PLAIN) -> Any:
    """A YAML or JSON file of dicts, lists and texts; every scalar stays the text of the file, `no` and `1e-4` too.

    Args:
        path: The file.
        fix: How such a file looks, for an error that says nothing better.

    Raises:
        UserError: As `load_yaml`.
    """
    try:
        return _plain(_yaml_root(path), path)
    except UserError as error:
        cause = _likely_cause(path, error)
        raise (UserError(cause.where, cause.what, fix) if cause.fix == _COMPARE else cause) from None


def _likely_cause(path: str | Path, error: UserError) -> UserError:
    """The slip in a file that its parser has blamed on something else; the error itself if there is none."""
    try:
        slip = find_slip(_read_text(path))
    except UserError:  # the file cannot be read
        return error
    return UserError(f"{path}:{slip.line}", slip.what, slip.fix) if slip else error


def dump_yaml(config: Config) -> str:
    """The resolved config as YAML text, readable by `load_yaml`."""
    return yaml.safe_dump(config.to_dict(), allow_unicode=True, sort_keys=False)


def dump_plain_yaml(content: Any) -> str:
    """Dicts, lists and texts as YAML text, readable by `load_plain_yaml`."""
    return yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=1000)


def _plain(node: yaml.Node, path: str | Path) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return node.value
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, path) for item in node.value]
    result: dict[str, Any] = {}
    for key, where, value in _entries(node, path, _line_of(node, path)):
        if key in result:
            raise UserError(where, f"{key} appears twice", "keep one of them")
        result[key] = _plain(value, path)
    return result


def _text_of(node: yaml.Node, key: str, takes_list: bool, where: str) -> str | None:
    """A YAML value as the text of its flag: None for null; a list, for a key that takes one, joined by commas."""
    if takes_list and _is_list_of_scalars(node):
        return ",".join(item.value for item in node.value)
    if not isinstance(node, yaml.ScalarNode):
        raise UserError(where, f"{key} is a {node.id}", "write a single value")
    _refuse_slips(node, key, where)
    return None if _is_null(node) else node.value


def _is_list_of_scalars(node: yaml.Node) -> bool:
    return isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in node.value)


def _refuse_slips(node: yaml.ScalarNode, key: str, where: str) -> None:
    """Raise UserError for a value that YAML reads as something else than is meant."""
    if node.style == '"' and not node.value.isprintable():  # `\n`, `\t`, `\L` and others are escapes
        raise UserError(where, f"{key} holds a line break or another invisible character", _BACKSLASHES)
    inner = unquoted(node.value)
    if node.style is None and inner is not None:
        raise UserError(where, f"{key} stands in {node.value[0]} {node.value[-1]}, which YAML takes for a part of it",
                        f"write '{inner}' with ASCII quotes")


def _yaml_root(path: str | Path) -> yaml.Node:
    """The root node of a YAML file. Raises UserError for tags, aliases, several documents and what is not UTF-8."""
    text = _read_text(path)
    try:
        _check_events(text, path)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise _as_user_error(error, path) from None
    if root is None:
        raise UserError(path, "empty", _COMPARE)
    return root


def _as_user_error(error: yaml.YAMLError, path: str | Path) -> UserError:
    """The parser's error with the line and column it points to."""
    mark = getattr(error, "problem_mark", None)
    where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else path
    problem = getattr(error, "problem", None) or "unreadable"
    fix = next((fix for words, fix in _FIXES.items() if words in problem), _COMPARE)
    return UserError(where, f"not valid YAML ({problem})", fix)


def _read_text(path: str | Path) -> str:
    file = expand(str(path))
    try:
        raw = read_regular(file)
    except OSError as error:
        raise UserError(file, f"cannot be read ({error.strerror})", "give a YAML file") from None
    if len(raw) > _MAX_YAML_BYTES:
        raise UserError(path, f"{len(raw)} bytes is not a config file", "give the path of a YAML file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(path, f"not UTF-8 (byte {error.start})", "save it as UTF-8") from None


def _check_events(text: str, path: str | Path) -> None:
    """Raise UserError for deep nesting, tags and aliases, before anything is built."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MAX_YAML_DEPTH:
            raise UserError(_line_of(event, path), "nested too deeply", _COMPARE)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
            raise UserError(_line_of(event, path), "tags and aliases are not allowed here", "write plain values")


def _entries(node: yaml.Node, path: str | Path, where: str) -> Iterator[tuple[str, str, yaml.Node]]:
    """(key, `FILE:LINE` of the key, value) of a mapping. Raises UserError at `where` for any other node."""
    is_mapping = isinstance(node, yaml.MappingNode)
    if not is_mapping or not all(isinstance(key, yaml.ScalarNode) for key, _ in node.value):
        raise UserError(where, "expected 'key: value' lines", _COMPARE)
    for key, value in node.value:
        yield key.value, _line_of(key, path), value


def _line_of(node: yaml.Node | yaml.Event, path: str | Path) -> str:
    return f"{path}:{node.start_mark.line + 1}"


def _is_null(node: yaml.Node) -> bool:
    is_plain = isinstance(node, yaml.ScalarNode) and node.style is None
    return is_plain and node.value in ("null", "Null", "NULL", "~", "")
