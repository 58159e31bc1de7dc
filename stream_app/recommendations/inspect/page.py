"""The inspection page as HTML: strings in, a string out. Every text of others goes through ``text``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

from stream_app.ranking.ranked import PARTS, Item
from stream_app.recommendations.inspect.pace import Pace
from stream_app.recommendations.inspect.plot import Curve, duration, weights_over_time
from stream_app.recommendations.readable import printable
from stream_app.recommendations.slate import Slate

PATH = "/inspect"
STYLE_PATH = "/inspect/style.css"
LONGEST_SHOWN = 300
"""Characters of one text."""

STYLE = """\
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto;
  max-width: 62rem; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
a { color: #0b4f8a; }
form { display: flex; flex-wrap: wrap; gap: .5rem; align-items: end; }
label { display: block; font-weight: 600; }
input, button { font: inherit; padding: .3rem .6rem; border: 1px solid #595959; border-radius: 4px; }
button { background: #0b4f8a; color: #fff; }
:focus-visible { outline: 3px solid #b34700; outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; }
caption { text-align: left; color: #444; padding-bottom: .3rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .9rem .3rem 0;
  border-bottom: 1px solid #d0d0d0; }
td.n { font-variant-numeric: tabular-nums; white-space: nowrap; }
td { overflow-wrap: anywhere; }
dl { display: flex; flex-wrap: wrap; gap: 1.5rem; margin: .5rem 0; }
dt { color: #444; } dd { margin: 0; font-weight: 600; }
svg { width: 100%; height: auto; } svg text { font-size: 12px; fill: #444; }
.key svg { width: .8em; height: .8em; }
.key { margin-right: 1rem; } .small { color: #444; font-size: .9rem; }
mark { background: #fff0b3; color: #1a1a1a; padding: 0 .3rem; border-radius: 3px; }
"""


@dataclass(frozen=True)
class Interaction:
    """One that the user's record still holds."""

    content: str
    """Title, or id, or key"""
    action: str
    at_ms: int
    weight: float
    remaining: float
    """What is left of it now; 0 when it is not in the sum"""
    state: str


@dataclass(frozen=True)
class Profile:
    """Everything that is shown of a user."""

    user: str
    mass: float
    now_ms: int
    """Time of the user's newest event, which the weights stand at"""
    half_life_ms: float
    interactions: Sequence[Interaction]
    """Newest first"""
    slate: Slate | None
    before: Slate | None


def text(value: str) -> str:
    """Somebody else's text, fit for HTML: bounded, escaped, without what turns the direction of writing or
    steers a terminal, and kept apart from its surroundings.

    >>> text('<b>"a"\\u202e')
    '<bdi>&lt;b&gt;&quot;a&quot;\\ufffd</bdi>'
    """
    short = value if len(value) <= LONGEST_SHOWN else value[: LONGEST_SHOWN - 1] + "…"
    return f"<bdi>{escape(printable(short))}</bdi>"


def render(
    pace: Pace | None,
    *,
    asked: str = "",
    longest: int = 256,
    profile: Profile | None = None,
    notice: str = "",
    title: Callable[[str], str] = printable,
) -> str:
    """The page. ``asked`` is the user that was asked for, ``longest`` an id's most characters, ``notice``
    what to say instead of a profile, ``title`` gives a content's title by its id."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>Inspect a slate</title><link rel="stylesheet" href="{STYLE_PATH}"></head><body>'
        "<header><h1>Inspect a slate</h1></header><main>",
        f'<form action="{PATH}" method="get" role="search"><div><label for="user">User id</label>'
        f'<input id="user" name="user" required maxlength="{longest}" autocomplete="off" '
        f'value="{escape(printable(asked))}"></div><button type="submit">Show</button>'
        f'<a href="{PATH}?random=1">one at random</a></form>',
        _live(pace),
    ]
    if notice:
        parts.append(f'<p role="status">{notice}</p>')
    if profile is not None:
        parts += [_interest(profile), _slate("Slate now", profile.slate, profile.before, title)]
        parts.append(_slate("Slate before", profile.before, None, title))
    parts.append("</main></body></html>\n")
    return "".join(parts)


def link(user: str) -> str:
    """Address of a user's page."""
    return f"{PATH}?user={quote(user, safe='')}"


def _live(pace: Pace | None) -> str:
    if pace is None:
        return ""
    fresh = "no slate yet" if pace.fresh_p50_s is None else f"{1000 * pace.fresh_p50_s:.0f} ms"
    worst = "–" if pace.fresh_p99_s is None else f"{1000 * pace.fresh_p99_s:.0f} ms"
    figures = (
        ("Freshness, median", fresh),
        ("Freshness, 99 %", worst),
        ("Users ranked", f"{pace.users_per_s:.1f} /s"),
        ("Slates published", f"{pace.slates_per_s:.1f} /s"),
    )
    listed = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in figures)
    return (
        f'<section aria-labelledby="live"><h2 id="live">This ranker, last {pace.seconds:.0f} s</h2>'
        f"<dl>{listed}</dl>"
        '<p class="small">Freshness: from an event’s arrival on Kafka to the committed slate.</p></section>'
    )


def _interest(profile: Profile) -> str:
    in_sum = (one for one in profile.interactions if one.remaining)
    curves = [Curve(printable(one.action), one.at_ms, one.weight) for one in in_sum]
    rows = (
        (
            text(one.content),
            text(one.action),
            f"{duration((profile.now_ms - one.at_ms) / 1000)} ago",
            f"{one.weight:+g}",
            f"{one.remaining:+.3f}",
            text(one.state),
        )
        for one in profile.interactions
    )
    return (
        f'<section aria-labelledby="interest"><h2 id="interest">Interest of {text(profile.user)}</h2>'
        f'<p class="small">Mass {profile.mass:.3f}; weights halve every '
        f"{duration(profile.half_life_ms / 1000)}, and stand at the user’s newest event.</p>"
        + weights_over_time(curves, profile.now_ms, profile.half_life_ms)
        + _table(
            "Recent interactions, newest first",
            ("Content", "Action", "When", "Weight", "Left of it", "State"),
            rows,
            short={1, 2, 3, 4, 5},
        )
        + "</section>"
    )


def _slate(heading: str, slate: Slate | None, before: Slate | None, title: Callable[[str], str]) -> str:
    name = heading.lower().replace(" ", "-")
    begin = f'<section aria-labelledby="{name}"><h2 id="{name}">{heading}</h2>'
    if slate is None:
        return f"{begin}<p>None that this ranker knows of.</p></section>"
    former = {} if before is None else {item.content_id: at for at, item in enumerate(before.items, 1)}
    rows = (
        (
            str(at),
            text(title(item.content_id)) + _moved(at, former.get(item.content_id), bool(former)),
            f"{item.score:.3f}",
            _parts(item),
            _reasons(item, title),
        )
        for at, item in enumerate(slate.items, 1)
    )
    cause = slate.caused_by
    why = f", caused by {text(f'{cause.topic} {cause.partition}/{cause.offset}')}" if cause else ""
    caption = f"{text(slate.kind)} by {text(slate.ranker)}, {text(slate.generated_at)}{why}"
    columns = ("Place", "Content", "Score", "Parts of the score", "Because of")
    return begin + _table(caption, columns, rows, short={0, 2}) + "</section>"


def _moved(place: int, former: int | None, compared: bool) -> str:
    if not compared or former == place:
        return ""
    return " <mark>new</mark>" if former is None else f" <mark>was {former}</mark>"


def _parts(item: Item) -> str:
    """The summands that are not zero, largest first."""
    by_size = sorted(((getattr(item.parts, name), name) for name in PARTS), key=lambda one: -abs(one[0]))
    return ", ".join(f"{name}&nbsp;{value:+.2f}" for value, name in by_size if abs(value) >= 0.005) or "–"


def _reasons(item: Item, title: Callable[[str], str]) -> str:
    if item.propensity is not None:
        return f"drawn by lot, probability {item.propensity:.2g}"
    given = (f"{r.share:.0%} {text(r.action)} of {text(title(r.content_id))}" for r in item.reasons)
    return "<br>".join(given) or "–"


def _table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], short: set[int]) -> str:
    """``caption`` and cells are HTML already; columns in ``short`` are not broken into lines."""
    head = "".join(f'<th scope="col">{name}</th>' for name in columns)
    body = "".join(
        "<tr>"
        + "".join(f"<td{' class=n' if at in short else ''}>{cell}</td>" for at, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
