"""The inspection page's HTML: complete, accessible, and whatever others wrote stays text."""

from __future__ import annotations

from collections import Counter
from html.parser import HTMLParser
from math import inf
from xml.etree import ElementTree

import pytest

from stream_app.ranking.ranked import Item, Parts, Reason
from stream_app.recommendations.inspect import page
from stream_app.recommendations.inspect.pace import Pace, PaceMeter, quantile
from stream_app.recommendations.inspect.page import Interaction, Profile
from stream_app.recommendations.inspect.plot import Curve, weights_over_time
from stream_app.recommendations.slate import Cause, Slate

DAY_MS = 86_400_000
NOW_MS = 1_700_000_000_000

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</title></style></svg><b>",
    "&lt;script&gt;",
    "javascript:alert(1)",
    "a\u202egnp.exe",  # turns the direction of writing
    "\u2066\u2067mixed\u2069",
    "nul\x00 escape\x1b[2J",
    "{0} {user} %s",
)


def slate(*contents: str, words: str = "like") -> Slate:
    items = [
        Item(content, 0.9 - 0.1 * place, Parts(0.6, 0.1, 0.0, -0.2), [Reason(contents[0], words, 0.75)])
        for place, content in enumerate(contents)
    ]
    return Slate("u", "2026-11-22T10:00:00.000Z", "m", Cause("likes", 1, 42, "", ""), "personal", items)


def profile(user: str = "ana", content: str = "c1", words: str = "like") -> Profile:
    interactions = [
        Interaction(content, words, NOW_MS - DAY_MS, 1.0, 0.9, "in the sum"),
        Interaction("c2", "hide", NOW_MS - 3 * DAY_MS, -2.0, -1.4, "in the sum"),
        Interaction("c3", "share", NOW_MS - 9 * DAY_MS, 3.0, 0.0, "undone"),
    ]
    now, before = slate(content, "c2", "c3", words=words), slate("c2", "c9", "c3")
    return Profile(user, 2.5, NOW_MS, 7 * DAY_MS, interactions, now, before)


class Outline(HTMLParser):
    """Tags, attributes and text of a page; refuses tags that do not match."""

    VOID = ("meta", "link", "input", "br", "line", "polyline", "circle")

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.words = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data

    def values(self, tag: str, name: str) -> list[str]:
        return [value for of, called, value in self.attributes if (of, called) == (tag, name)]


PACE = Pace(60.0, 12.0, 11.5, 0.025, 0.103)


@pytest.mark.parametrize("text", HOSTILE)
def test_what_others_wrote_stays_text(text: str) -> None:
    harmless = Outline(page.render(PACE, asked="ana", profile=profile(), title=str))
    html = page.render(
        PACE, asked=text, profile=profile(text, text, text), notice=page.text(text), title=lambda _: text
    )
    outline = Outline(html)
    of_the_page = {tag: n for tag, n in outline.tags.items() if tag not in ("p", "bdi", "mark")}
    assert of_the_page == {t: n for t, n in harmless.tags.items() if t not in ("p", "bdi", "mark")}
    assert {(tag, name) for tag, name, _ in outline.attributes} == {
        (tag, name) for tag, name, _ in harmless.attributes
    } | {("p", "role")}
    for character in "\x00\x1b\u202e\u2066\u2067\u2069":
        assert character not in html
    readable = "".join(c if c.isprintable() else "\ufffd" for c in text)
    assert outline.words.count(readable) >= 6
    assert outline.values("input", "value") == [readable]


def test_nothing_runs_and_nothing_is_fetched_from_elsewhere() -> None:
    outline = Outline(page.render(PACE, profile=profile()))
    assert not {"script", "iframe", "img", "style"} & set(outline.tags)
    assert not [name for _, name, _ in outline.attributes if name.startswith("on") or name == "style"]
    addresses = [value for _, name, value in outline.attributes if name in ("href", "src", "action")]
    assert addresses
    assert all(address.startswith("/inspect") for address in addresses)


def test_it_can_be_used_without_seeing_it() -> None:
    outline = Outline(page.render(PACE, asked="ana", profile=profile()))
    assert outline.values("html", "lang") == ["en"]
    assert outline.values("label", "for") == outline.values("input", "id") == ["user"]
    assert outline.tags["h1"] == outline.tags["main"] == outline.tags["title"] - 2 == 1  # two are curves'
    assert outline.tags["caption"] == outline.tags["table"] == 3
    assert outline.values("th", "scope") == ["col"] * outline.tags["th"]
    assert set(outline.values("section", "aria-labelledby")) == set(outline.values("h2", "id"))
    (label,) = outline.values("svg", "aria-label")
    assert label == "Remaining weight of 2 interactions over 3.0 d"


def test_a_slate_is_compared_with_the_one_before() -> None:
    words = Outline(page.render(None, profile=profile(), title=str)).words
    assert "c1 new" in words
    assert "c2 was 1" in words
    assert "c3 was" not in words
    assert "75% like of c1" in words
    assert "interest\xa0+0.60, match\xa0-0.20, recency\xa0+0.10" in words


def test_who_has_no_slate_is_shown_so() -> None:
    words = Outline(page.render(None, profile=Profile("u", 0.0, 0, DAY_MS, [], None, None))).words
    assert words.count("None that this ranker knows of.") == 2


def test_long_texts_are_cut() -> None:
    assert len(page.text("x" * 5000)) < 400


def test_the_plot_draws_the_halving() -> None:
    drawn = weights_over_time([Curve("like", NOW_MS - 2 * DAY_MS, 4.0)], NOW_MS, DAY_MS)
    svg = ElementTree.fromstring(drawn[: drawn.index("</svg>") + 6])  # noqa: S314  # our own
    (line,) = svg.iter("polyline")
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    top, base = points[0][1], max(float(axis.attrib["y1"]) for axis in svg.iter("line"))
    assert [round((base - y) / (base - top), 2) for _, y in (points[0], points[16], points[32])] == [
        1,
        0.5,
        0.25,
    ]
    assert weights_over_time([], NOW_MS, DAY_MS) == ""


def contrast(one: str, other: str) -> float:
    """Of two #rrggbb colours, by WCAG 2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_colours_can_be_told_from_the_background() -> None:
    from stream_app.recommendations.inspect.plot import COLOURS

    assert all(contrast(colour, "#ffffff") >= 4.5 for colour in (*COLOURS, "#444444", "#767676", "#0b4f8a"))
    assert contrast("#1a1a1a", "#fff0b3") >= 4.5


def test_the_pace_is_that_of_the_window() -> None:
    from stream_app.observability import metrics

    meter = PaceMeter()
    meter.sample(0.0)
    assert meter.pace() is None
    metrics.RANKED_USERS.labels("personal").inc(30)
    metrics.SLATES.labels("published").inc(20)
    metrics.SLATES.labels("unchanged").inc(10)
    for _ in range(20):
        metrics.FRESHNESS_SECONDS.observe(0.015)
    meter.sample(10.0)
    pace = meter.pace()
    assert pace is not None
    assert (pace.seconds, pace.users_per_s, pace.slates_per_s) == (10.0, 3.0, 2.0)
    assert pace.fresh_p50_s is not None
    assert 0.01 < pace.fresh_p50_s <= 0.02


@pytest.mark.parametrize(
    ("buckets", "expected"),
    [([], None), ([(1.0, 0), (inf, 0)], None), ([(1.0, 4), (inf, 4)], 0.5), ([(1.0, 0), (inf, 9)], 1.0)],
)
def test_quantiles(buckets: list[tuple[float, float]], expected: float | None) -> None:
    assert quantile(buckets, 0.5) == expected
