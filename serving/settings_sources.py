"""Reads a dataclass of settings from a TOML file, the environment and flags, later ones first; knows no setting.

A setting `grace` is `grace = 5` in the file, `IMAGE_SEARCH_GRACE=5` and `--grace 5`. A field that is itself a dataclass
is a table of the file: `tls.key` is `key` under `[tls]`, `IMAGE_SEARCH_TLS_KEY` and `--tls-key`. A field of lists by
name has a table of its own, and comes from the file only.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from data.errors import UserError

T = TypeVar("T")

_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class SettingsError(UserError):
    """A setting is unknown, malformed or out of its range; the text names where it stands."""


def setting(default: Any, help: str, unit: str = "VALUE", least: float = -math.inf, most: float = math.inf) -> Any:
    """A dataclass field with what users are told of it, and the range of a number."""
    metadata = {"help": help, "unit": unit, "least": least, "most": most}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Known:
    """One setting of a dataclass. `path` is where it stands, such as ("tls", "key")."""

    path: tuple[str, ...]
    kind: Any
    default: Any
    help: str
    unit: str
    least: float
    most: float

    @property
    def name(self) -> str:
        """As in the file, such as `tls.key`."""
        return ".".join(self.path)

    @property
    def flag(self) -> str:
        """As on the command line, such as `--tls-key`."""
        return "--" + "-".join(self.path).replace("_", "-")

    def variable(self, prefix: str) -> str:
        """As in the environment, such as `IMAGE_SEARCH_TLS_KEY`."""
        return "_".join((prefix, *self.path)).upper()

    def parse(self, value: Any, place: str, directory: Path) -> Any:
        """The value in its type, paths relative to `directory`; `SettingsError` names the `place`."""
        described, parser = _KINDS[self.kind]
        try:
            parsed = parser(value)
        except (ValueError, OverflowError):
            raise SettingsError(f"{described} for {self.name}", repr(value), f"correct it {place}") from None
        if self.kind in (int, float) and not self.least <= parsed <= self.most:
            expected = f"{self.name} of at least {self.least:g}"
            expected += f" and at most {self.most:g}" if math.isfinite(self.most) else ""
            raise SettingsError(expected, repr(value), f"correct it {place}")
        return directory / parsed if isinstance(parsed, Path) else parsed


def settings_of(settings: type, path: tuple[str, ...] = ()) -> Iterator[Known]:
    """Every setting of a dataclass, in order."""
    kinds = get_type_hints(settings)
    for field in dataclasses.fields(settings):
        kind, here = kinds[field.name], (*path, field.name)
        if dataclasses.is_dataclass(kind):
            yield from settings_of(kind, here)  # type: ignore[arg-type]
        else:
            yield Known(here, kind, {} if field.default is MISSING else field.default, **field.metadata)


def add_flags(parser: argparse.ArgumentParser, settings: type) -> None:
    """A flag for each setting, grouped as in the file; only those that are given appear in the result."""
    groups: dict[str, Any] = {}
    for known in settings_of(settings):
        if known.kind == dict[str, list[str]]:
            continue
        *section, _ = known.path
        if section and section[0] not in groups:
            groups[section[0]] = parser.add_argument_group(section[0])
        options: dict[str, Any] = {"dest": known.name, "default": argparse.SUPPRESS, "help": _told(known)}
        if known.kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = known.unit
        (groups[section[0]] if section else parser).add_argument(known.flag, **options)


def _told(known: Known) -> str:
    shown = "" if known.default in ("", None, False, ()) else f", default {known.default}"
    return (known.help + shown).replace("%", "%%")


def read_settings(
    settings: type[T],
    file: Path | None,
    environment: Mapping[str, str],
    prefix: str,
    flags: Mapping[str, Any],
    others: re.Pattern[str] = re.compile("(?!)"),
) -> T:
    """The settings, by flags before environment before file before defaults.

    `SettingsError` names the place of one that is unknown or bad. Paths in the file are relative to its directory.
    `others` matches variables of the environment that begin with the prefix and are no settings.
    """
    known = {each.name: each for each in settings_of(settings)}
    values: dict[str, Any] = {}
    if file is not None:
        for name, value in _in_file(file, known):
            values[name] = known[name].parse(value, f"in {file}", file.parent)
    by_variable = {each.variable(prefix): each for each in known.values() if each.kind != dict[str, list[str]]}
    for variable in sorted(environment):
        if variable.startswith(f"{prefix}_") and not others.fullmatch(variable):
            if variable not in by_variable:
                raise _unknown(variable, by_variable, "in the environment")
            each = by_variable[variable]
            values[each.name] = each.parse(environment[variable], f"in the environment, {variable}", Path())
    for name, value in flags.items():
        values[name] = known[name].parse(value, f"after {known[name].flag}", Path())
    return _built(settings, values, ())


def _in_file(file: Path, known: Mapping[str, Known]) -> Iterator[tuple[str, Any]]:
    try:
        content = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise SettingsError("a readable file of settings", f"{file} ({error.strerror})", "correct --config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError("a file of settings in TOML", f"{file}: {error}", "correct it there") from None
    tables = {each.path[0] for each in known.values() if len(each.path) > 1}
    for name, value in content.items():
        if name not in tables:
            entries = {name: value}
        elif isinstance(value, dict):
            entries = {f"{name}.{inner}": entry for inner, entry in value.items()}
        else:
            raise SettingsError(f"a table [{name}]", repr(value), f"correct it in {file}")
        for entry in entries:
            if entry not in known:
                raise _unknown(entry, known, f"in {file}")
        yield from entries.items()


def _unknown(name: str, known: Mapping[str, Any], place: str) -> SettingsError:
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else "see docs/configuration.md for all of them"
    return SettingsError("a setting of the server", f"{name} {place}", hint)


def _built(settings: type[T], values: Mapping[str, Any], path: tuple[str, ...]) -> T:
    kinds = get_type_hints(settings)
    given = {}
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        name = ".".join((*path, field.name))
        if dataclasses.is_dataclass(kinds[field.name]):
            given[field.name] = _built(kinds[field.name], values, (*path, field.name))
        elif name in values:
            given[field.name] = values[name]
    return settings(**given)


def to_toml(settings: object) -> str:
    """The settings as a file that `read_settings` reads back."""
    lines, tables = [], []
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            inner = to_toml(value).replace("\n[", f"\n[{field.name}.")
            tables.append(f"\n[{field.name}]\n{inner}")
        elif isinstance(value, dict):
            entries = "".join(f"{_toml(key)} = {_toml(entry)}\n" for key, entry in value.items())
            tables.append(f"\n[{field.name}]\n{entries}")
        else:
            lines.append(f"{field.name} = {_toml(value)}\n")
    return "".join(lines + tables)


def _toml(value: Any) -> str:
    """A value in TOML, which for these types is JSON."""
    if value is None or isinstance(value, Path):
        value = str(value or "")
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _path(value: Any) -> Path | None:
    text = _text(value)
    if "\0" in text:
        raise ValueError
    return Path(text) if text else None


def _flag(value: Any) -> bool:
    value = _WORDS.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(value, bool):
        raise ValueError
    return value


def _integer(value: Any) -> int:
    if isinstance(value, str) and len(value) < 20:
        return int(value)
    if type(value) is not int:
        raise ValueError
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not math.isfinite(float(value)):
        raise ValueError
    return float(value)


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(word.strip() for word in value.split(",") if word.strip())
    if not isinstance(value, list):
        raise ValueError
    return tuple(map(_text, value))


def _lists_of_texts(value: Any) -> dict[str, list[str]]:
    if not isinstance(value, dict) or not all(isinstance(texts, list) for texts in value.values()):
        raise ValueError
    return {name: [_text(text) for text in texts] for name, texts in value.items()}


_KINDS: dict[Any, tuple[str, Callable[[Any], Any]]] = {
    str: ("a text", _text),
    Path | None: ("a path", _path),
    bool: ("true or false", _flag),
    int: ("a whole number", _integer),
    float: ("a number", _number),
    tuple[str, ...]: ("a list of texts", _texts),
    dict[str, list[str]]: ("a list of texts for each name", _lists_of_texts),
}
