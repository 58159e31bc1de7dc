"""Where settings come from: a TOML file and the environment, and which names they may use.

Unknown names are refused with the nearest right one: a misspelt setting that is ignored looks as if it
were set. Of such a name no value is ever shown, for it may be a misspelt password's.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec

from stream_app.errors import ConfigurationError
from stream_app.secret import Secret

ENV_PREFIX = "STREAM_APP_"
CONFIG, BROKER = f"{ENV_PREFIX}CONFIG", f"{ENV_PREFIX}BROKER"
NOT_SETTINGS = {
    CONFIG: "the TOML file",
    BROKER: "short for kafka.broker",
    f"{ENV_PREFIX}DATA": "recorded logs that tests run on",
}
"""Names in the environment that are no setting's."""

ALIKE = 0.5
"""How alike two names must be (0 to 1) for one to be offered instead of the other."""
OF_A_SERVICE = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_[0-9]+_\w+)?)$")

Sections = Mapping[str, type[msgspec.Struct]]


def variable(section: str, field: str) -> str:
    """The environment variable of a setting."""
    return f"{ENV_PREFIX}{section}_{field}".upper()


def from_file(path: str | None) -> dict[str, Any]:
    """The tree of a TOML file; empty without one. Raises ConfigurationError."""
    if path is None:
        return {}
    try:
        with Path(path).open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigurationError(f"--config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--config {path}: not TOML: {error}") from None


def from_environment(env: Mapping[str, str], sections: Sections) -> Iterator[tuple[str, str, str, Any]]:
    """Section, field, variable and value of each setting that the environment has; the later ones win.

    Raises ConfigurationError for names that are none of ours, and for lists that cannot be read.
    """
    _refuse_variables(env, sections)
    for section, kind in sections.items():
        for field in msgspec.structs.fields(kind):
            name = variable(section, field.name)
            if name in env:
                yield section, field.name, name, _parsed(f"{section}.{field.name}", field, env[name])
    if env.get(BROKER):
        yield "kafka", "broker", BROKER, env[BROKER]


def refuse_unknown(tree: Mapping[str, Any], sections: Sections) -> None:
    """Raise ConfigurationError for sections and settings of a tree that there are none of."""
    for section, given in tree.items():
        if section not in sections:
            homes = [name for name, kind in sections.items() if section in kind.__struct_fields__]
            raise _unknown(f"[{section}]" if isinstance(given, Mapping) else section, homes, sections)
        if isinstance(given, Mapping):
            _refuse_fields(section, given, sections[section])


def _refuse_fields(where: str, given: Mapping[str, Any], kind: type[msgspec.Struct]) -> None:
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    for name, value in given.items():
        if name not in fields:
            raise _unknown(f"{where}.{name}", [], fields, name)
        entry = entry_of(fields[name])
        if entry is not None and isinstance(value, list):
            for place, item in enumerate(value):
                if isinstance(item, Mapping):
                    _refuse_fields(f"{where}.{name}[{place}]", item, entry)


def _unknown(shown: str, homes: list[str], known: Iterable[str], name: str = "") -> ConfigurationError:
    if homes:
        return ConfigurationError(f"{shown} stands outside of its table: write it under [{homes[0]}]")
    name = name or shown.strip("[]")
    nearest = difflib.get_close_matches(name, list(known), 1, ALIKE)
    what = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known)}"
    return ConfigurationError(f"{shown} is no setting: {what}")


def _refuse_variables(env: Mapping[str, str], sections: Sections) -> None:
    known = [variable(name, field) for name, kind in sections.items() for field in kind.__struct_fields__]
    known += NOT_SETTINGS
    unknown = sorted({name for name in env if name.upper().startswith(ENV_PREFIX)} - set(known))
    if unknown:
        raise ConfigurationError(
            f"in the environment {', '.join(_with_nearest(name, known) for name in unknown)}: correct or "
            "unset it (`stream-app config` lists the settings)"
        )


def _with_nearest(name: str, known: Iterable[str]) -> str:
    if OF_A_SERVICE.search(name):
        return f"{name} is no setting (Kubernetes' for a Service? set enableServiceLinks: false)"
    # without what they all begin with: it would make any two look alike
    short = {one.removeprefix(ENV_PREFIX): one for one in known}
    nearest = difflib.get_close_matches(name.upper().removeprefix(ENV_PREFIX), list(short), 1, ALIKE)
    return f"{name} is no setting" + (f" (did you mean {short[nearest[0]]}?)" if nearest else "")


def items_of(field: msgspec.structs.FieldInfo) -> Any:
    """The type of a list's entries; None for a setting that is no list."""
    kind = field.type
    while hasattr(kind, "__metadata__"):  # Annotated
        kind = get_args(kind)[0]
    return get_args(kind)[0] if get_origin(kind) is tuple else None


def entry_of(field: msgspec.structs.FieldInfo) -> type[msgspec.Struct] | None:
    """The struct that a list's entries are, of a setting that is a list of structs."""
    item = items_of(field)
    return item if isinstance(item, type) and issubclass(item, msgspec.Struct) else None


def _parsed(setting: str, field: msgspec.structs.FieldInfo, text: str) -> Any:
    """A value from the environment: lists are comma-separated, their entries' fields separated by colons."""
    if isinstance(field.default, Secret):
        return Secret(text)
    if items_of(field) is None:
        return text
    items = [item for part in text.split(",") if (item := part.strip())]
    entry = entry_of(field)
    if entry is None:
        return items
    names = entry.__struct_fields__
    parts = [item.split(":") for item in items]
    if any(len(part) != len(names) for part in parts):
        raise ConfigurationError(f"{setting} = {text!r}: expected {':'.join(names)},…")
    return [dict(zip(names, part, strict=True)) for part in parts]


def explained(message: str, tree: Mapping[str, Any]) -> str:
    """``Expected `int` >= 1 - at `$.kafka.partitions``` → ``kafka.partitions = 0: expected …``."""
    what, _, where = message.partition(" - at `$.")
    path = where.rstrip("`")
    if not path:
        return message
    what = f"{what[0].lower()}{what[1:]}"
    value: Any = tree
    for step in path.replace("[", ".").replace("]", "").split("."):
        try:
            value = value[int(step)] if isinstance(value, list) else value[step]
        except (KeyError, IndexError, TypeError, ValueError):
            return f"{path}: {what}"
    # a table in the wrong place may hold anything
    hidden = isinstance(value, Mapping) or (isinstance(value, list) and any(map(_is_compound, value)))
    return f"{path}: {what}" if hidden else f"{path} = {value!r}: {what}"


def _is_compound(value: object) -> bool:
    return isinstance(value, Mapping | list)
