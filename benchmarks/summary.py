"""The suite's summary as Markdown: machine, versions, a table for each part, what was left out. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def table(summary: Mapping[str, Any]) -> str:
    """Everything that was measured, as docs/BENCHMARKS.md shows it."""
    machine = summary["machine"]
    load = " → ".join(f"{value:.1f}" for value in summary["load_average"])
    parts = [
        f"{machine['cpu']}, {machine['cores']} cores shared with the broker, {machine['memory_gb']} GB; "
        f"{summary['date']}, commit {summary['commit']}, load average {load}",
        "; ".join(f"{name} {version}" for name, version in summary["versions"].items()),
    ]
    shown = (
        ("state_path", _state_path),
        ("freshness", _freshness),
        ("recovery", _recovery),
        ("encoding", _encoding),
        ("ranking", _ranking),
    )
    parts += [text(summary[key]) for key, text in shown if key in summary]
    for what in ("skipped", "failed"):
        parts += [f"{what.upper()} {name}: {reason}" for name, reason in summary[what].items()]
    return "\n\n".join(parts)


def _state_path(found: Mapping[str, Any]) -> str:
    ours = found["events_per_s"]
    rows = [
        (
            name,
            _spread(of["events_per_s"]),
            _spread(of["cpu_us_per_event"], 1),
            f"{ours / of['events_per_s']['median']:.2f}" if ours else "–",
        )
        for name, of in found["contenders"].items()
    ]
    return f"### State path, {found['events']:,} events of {found['users']:,} users\n\n" + _rows(
        ("", "events/s", "processor µs an event", "stream-app is × as fast"), rows
    )


def _freshness(found: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            f"{entry['contents']:,}",
            f"{entry['load']}, {entry['offered_events_per_s']:,.0f}",
            _spread(entry["spread"]["slates_per_s"]),
            _spread(entry["spread"]["p50_ms"]),
            _spread(entry["spread"]["p99_ms"]),
            f"{entry['named_share']:.0%}",
            ", ".join(f"{name} {seconds:.1f}" for name, seconds in entry["cpu_s"].items()),
        )
        for entry in found
    ]
    head = ("contents", "events/s offered", "slates/s", "p50 ms", "p99 ms", "named", "processor s")
    return "### Freshness\n\n" + _rows(head, rows)


def _recovery(found: Mapping[str, Any]) -> str:
    rows = [(name, _spread(of)) for name, of in found["spread"].items()]
    sizes = f"{found['users']:,} users, of Faust {found['faust_records']:,}"
    title = f"### Recovery, {sizes}: × {found['vs_faust']:.1f}"
    return f"{title}\n\n" + _rows(("", "records/s"), rows)


def _encoding(found: Mapping[str, Any]) -> str:
    rows = [(name, _spread(of)) for name, of in found["spread"].items()]
    versus = found["vs_sentence_transformers"]
    title = f"### Encoding, {found['threads']} threads" + (f": × {versus:.2f}" if versus else "")
    return f"{title}\n\n" + _rows(("", "texts/s"), rows)


def _ranking(found: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (f"{e['contents']:,}", e["ranker"], e["device"], str(e["users"]), _spread(e["spread"])) for e in found
    ]
    return "### Ranking\n\n" + _rows(("contents", "ranker", "device", "users at a time", "users/s"), rows)


def _spread(found: Mapping[str, float] | None, digits: int = 0) -> str:
    """Median, and smallest to largest behind it."""
    if found is None:
        return "–"
    low, median, high = (f"{found[name]:,.{digits}f}" for name in ("min", "median", "max"))
    return f"{median} ({low} to {high})"


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
