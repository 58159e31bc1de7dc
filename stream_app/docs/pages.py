"""Reference pages in Markdown, each made from the one place in the code that defines its subject."""

from __future__ import annotations

import argparse
import importlib
import inspect
from collections.abc import Iterable, Iterator

import msgspec
from msgspec import inspect as types
from prometheus_client.metrics import MetricWrapperBase

from stream_app import cli, errors
from stream_app.errors import StreamAppError
from stream_app.events.dead_letters import HEADERS, PREFIX
from stream_app.events.reasons import Reason
from stream_app.events.redrive import Refusal
from stream_app.observability import metrics
from stream_app.secret import Secret
from stream_app.settings import ENV_PREFIX, SECTIONS, Action, Section

NOTICE = "<!-- made by `python -m stream_app.docs`: change the code, not this page -->"

ABOUT_SETTINGS = (
    "Later sources win: the defaults below; a TOML file (`--config FILE` or `STREAM_APP_CONFIG`) with one"
    " table a section; environment variables. `STREAM_APP_BROKER` is short for `STREAM_APP_KAFKA_BROKER`."
    " In the environment lists are separated by commas. A value that is not allowed ends the command with"
    " exit status 2 and names setting, value and what is allowed."
)
ABOUT_METRICS = (
    "Every worker serves these on `/metrics` in Prometheus' text format. A histogram has the series "
    "`_bucket`, `_sum` and `_count`. No user or content id is ever a label."
)
ABOUT_REASONS = (
    "A record that cannot be used is counted by one of these codes, and never costs its neighbours. "
    "It goes to `events-dlq` with its original bytes and headers, be it an event or a content."
)
ABOUT_REFUSALS = (
    "`stream-app dlq redrive` gives a dead letter a second chance unless one of these is true; the letter "
    "then stays as it is."
)
ABOUT_COMMANDS = (
    "Every command takes `--config FILE` (a TOML file, see [CONFIG.md](CONFIG.md)) and `--log-level "
    "LEVEL`, before or after its name."
)


def config() -> str:
    """``docs/CONFIG.md``, from the settings' descriptions."""
    lines = [
        "# Settings",
        NOTICE,
        ABOUT_SETTINGS,
    ]
    for name, section in SECTIONS.items():
        lines += [
            f"## `[{name}]`",
            _first_line(section),
            _settings_table(section, f"{ENV_PREFIX}{name}_".upper()),
        ]
    lines += ["## One action", "An entry of `events.actions`.", _settings_table(Action, None)]
    return "\n\n".join(lines) + "\n"


def metric_page() -> str:
    """``docs/METRICS.md``, from the metrics that exist."""
    rows = []
    for metric in vars(metrics).values():
        if not isinstance(metric, MetricWrapperBase):
            continue
        (described,) = metric.describe()
        name = {"counter": f"{described.name}_total"}.get(described.type, described.name)
        labels = ", ".join(f"`{label}`" for label in metric._labelnames)
        rows.append((f"`{name}`", described.type, labels or "–", described.documentation))
    return (
        "\n\n".join(
            [
                "# Metrics",
                NOTICE,
                ABOUT_METRICS,
                _table(("metric", "type", "labels", "meaning"), rows),
            ]
        )
        + "\n"
    )


def reasons() -> str:
    """``docs/REASONS.md``: reason codes, headers of dead letters, error codes."""
    return (
        "\n\n".join(
            [
                "# Reason codes and errors",
                NOTICE,
                "## Reasons",
                ABOUT_REASONS,
                _table(("code", "meaning"), ((f"`{r.value}`", r.meaning) for r in Reason)),
                "## Headers of dead letters and retries",
                f"Names start with `{PREFIX}`, which is reserved; values are UTF-8 text.",
                _table(("header", "meaning"), ((f"`{PREFIX}{n}`", m) for n, m in HEADERS.items())),
                "## Refusals of `dlq redrive`",
                ABOUT_REFUSALS,
                _table(("code", "meaning"), ((f"`{r.value}`", r.meaning) for r in Refusal)),
                "## Errors",
                "What ends a command is printed as `stream-app: [code] message` with the next step.",
                _table(
                    ("code", "exit status", "meaning"),
                    ((f"`{e.code}`", str(e.exit_status), _first_line(e)) for e in _errors()),
                ),
            ]
        )
        + "\n"
    )


def commands() -> str:
    """``docs/COMMANDS.md``, from the argument parsers."""
    lines = [
        "# Commands",
        NOTICE,
        ABOUT_COMMANDS,
    ]
    for name, path in cli.COMMANDS.items():
        module = importlib.import_module(path)
        parser = argparse.ArgumentParser(prog=f"stream-app {name}", add_help=False)
        module.add_arguments(parser)
        lines += [f"## stream-app {name}", _sentence(module.HELP), *_arguments(parser)]
    return "\n\n".join(lines) + "\n"


def _arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    """A parser's own arguments as a table, then its subcommands."""
    rows, subcommands = [], []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction) or action.help == argparse.SUPPRESS:
            continue
        if isinstance(action, argparse._SubParsersAction):
            about = {choice.dest: choice.help or "" for choice in action._choices_actions}
            subcommands += [(sub, about[name]) for name, sub in action.choices.items()]
            continue
        text = (action.help or "") % {**vars(action), "prog": parser.prog}
        if not text:
            raise ValueError(f"{parser.prog}: argument {action.dest} has no help")
        rows.append((f"`{_invocation(action)}`", text))
    if rows:
        yield _table(("argument", "meaning"), rows)
    for sub, text in subcommands:
        yield f"### {sub.prog.removesuffix(' ')}"
        yield _sentence(text)
        yield from _arguments(sub)


def _invocation(action: argparse.Action) -> str:
    """``--limit N``, ``PARTITION``, ``{a,b}``."""
    choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else None
    metavar = action.metavar if isinstance(action.metavar, str) else choices or action.dest.upper()
    if not action.option_strings:
        return metavar
    names = ", ".join(action.option_strings)
    return names if action.nargs == 0 else f"{names} {metavar}"


def _settings_table(section: type[Section], prefix: str | None) -> str:
    rows = []
    for field in _fields(section):
        allowed, description = _described(field.type)
        if not description:
            raise ValueError(f"setting {section.__name__}.{field.name} has no description")
        default = "required" if field.required else f"`{_shown(field.default)}`"
        row = (f"`{field.name}`", allowed, default, description)
        rows.append(row if prefix is None else (*row, f"`{prefix}{field.name.upper()}`"))
    head = ("setting", "type", "default", "meaning")
    return _table(head if prefix is None else (*head, "environment"), rows)


def _fields(section: type[Section]) -> tuple[types.Field, ...]:
    info = types.type_info(section)
    if not isinstance(info, types.StructType):
        raise TypeError(f"{section.__name__} is no struct")
    return info.fields


def _described(kind: types.Type) -> tuple[str, str]:
    """What a type allows, and its description."""
    description = ""
    while isinstance(kind, types.Metadata):
        description = description or (kind.extra_json_schema or {}).get("description", "")
        kind = kind.type
    return _allowed(kind), description


def _allowed(kind: types.Type) -> str:
    if isinstance(kind, types.BoolType):
        return "`true` or `false`"
    if isinstance(kind, types.CustomType) and kind.cls is Secret:
        return "secret"
    if isinstance(kind, types.StrType):
        return f"text matching `{kind.pattern}`" if kind.pattern else "text"
    if isinstance(kind, types.IntType | types.FloatType):
        name = "integer" if isinstance(kind, types.IntType) else "number"
        bounds = (("≥", kind.ge), (">", kind.gt), ("≤", kind.le), ("<", kind.lt))
        limits = " and ".join(f"{sign} {bound:,}" for sign, bound in bounds if bound is not None)
        return f"{name} {limits}".strip()
    if isinstance(kind, types.VarTupleType):
        most = f", at most {kind.max_length}" if kind.max_length else ""
        item = kind.item_type
        return (
            f"list of actions{most}"
            if isinstance(item, types.StructType)
            else f"list of: {_described(item)[0]}{most}"
        )
    raise TypeError(f"no words for settings of type {kind}")


def _shown(default: object) -> str:
    """A default as it is written in TOML."""
    if isinstance(default, tuple) and default and isinstance(default[0], Action):
        return ",".join(f"{a.name}:{a.topic}:{a.weight:g}" for a in default)
    return repr(default) if isinstance(default, Secret) else msgspec.json.encode(default).decode()


def _errors() -> list[type[StreamAppError]]:
    """The whole tree, by code."""
    found = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, StreamAppError)]
    return sorted(found, key=lambda error: error.code)


def _first_line(documented: type) -> str:
    return (inspect.getdoc(documented) or "").partition("\n\n")[0].replace("\n", " ").replace("``", "`")


def _sentence(text: str) -> str:
    """Help texts start small and end without a full stop."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
