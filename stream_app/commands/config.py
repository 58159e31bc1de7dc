"""``stream-app config``: the settings as they are in effect, and where each comes from."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from typing import Any

import msgspec

from stream_app.secret import REDACTED, Secret
from stream_app.settings import SECTIONS, Settings, origins

HELP = "print the settings in effect and where each comes from; secrets are not shown"

DEFAULT = "default"
USER_OF_A_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")


class Row(msgspec.Struct, frozen=True):
    """One setting."""

    setting: str
    """``section.name``"""
    value: Any
    source: str
    """``default``, a file's name, an environment variable's, or an option's."""
    secret: bool = False
    """Its value is not shown; empty when none is given."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--changed", action="store_true", help="only what a file or the environment sets")
    parser.add_argument("--json", action="store_true", help="a JSON list instead of TOML")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print them; always 0: what is not allowed has ended the command before."""
    given = origins(args.config)
    if args.log_level is not None:
        given["observability.log_level"] = "--log-level"
    rows = [row for row in _rows(settings, given) if not args.changed or row.source != DEFAULT]
    if args.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(rows)).decode() + "\n")
    else:
        sys.stdout.write("".join(f"{line}\n" for line in _toml(rows)))
    return 0


def _rows(settings: Settings, given: dict[str, str]) -> Iterator[Row]:
    """Every setting, in the order of the reference page."""
    for section in SECTIONS:
        fields = getattr(settings, section)
        for name in fields.__struct_fields__:
            setting, value = f"{section}.{name}", getattr(fields, name)
            source = given.get(setting, DEFAULT)
            if setting == "events.actions" and "events.extra_actions" in given:
                source += f", and events.extra_actions from {given['events.extra_actions']}"
            if isinstance(value, Secret):
                yield Row(setting, REDACTED if value else "", source, secret=True)
            else:
                yield Row(setting, _shown(msgspec.to_builtins(value)), source)


def _shown(value: Any) -> Any:
    """Without the user and the password that an address may contain."""
    return USER_OF_A_URL.sub(REDACTED, value) if isinstance(value, str) else value


def _toml(rows: list[Row]) -> Iterator[str]:
    """A TOML file that says the same; where a setting comes from is a comment, and so is a secret, which
    has no place in a file."""
    open_section = ""
    for row in rows:
        section, _, name = row.setting.partition(".")
        if section != open_section:
            yield from ([""] if open_section else []) + [f"[{section}]"]
            open_section = section
        yield f"{'# ' if row.secret else ''}{name} = {_value(row.value)}  # {row.source}"


def _value(value: Any) -> str:
    """In TOML: but for tables as in JSON."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_value(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return msgspec.json.encode(value).decode()
