"""The inspection page in a real browser: it is drawn, and what others wrote runs nothing.

The screenshot is kept as ``build/inspection-page.png``.
"""

from __future__ import annotations

import asyncio
import json
import struct
import subprocess
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from stream_app.content.index import ContentIndex
from stream_app.content.vectors import ContentVector
from stream_app.hashing import action_code, key64
from stream_app.interests.record import APPLIED, HEADER, INTERACTION, UNDONE, VERSION
from stream_app.ranking.ranked import Item, Parts, Reason
from stream_app.recommendations.inspect.server import Inspection
from stream_app.recommendations.pipeline import Change
from stream_app.recommendations.slate import Cause, Slate
from stream_app.settings import Settings, build
from tests.deploy.tools import tool
from tests.recommendations.inspect.test_inspect_server import Read

pytestmark = pytest.mark.deploy

SCREENSHOT = Path(__file__).parents[2] / "build" / "inspection-page.png"
TIMEOUT_S = 120
NOW_MS = 1_780_000_000_000
HOUR_MS = 3_600_000
ATTACK = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
USER = "ana \u202e" + ATTACK
BUTTON, CURVE = (0x0B, 0x4F, 0x8A), (0x0B, 0x5F, 0xA5)
"""Colours of the style sheet and of the plot."""


def record(contents: list[bytes]) -> bytes:
    """An interest record with an interaction with each content, hours apart, the first one undone."""
    header = np.zeros(1, HEADER)
    header["version"], header["dimensions"], header["recent"] = VERSION, 8, 8
    header["t_ref"], header["mass"] = NOW_MS, 4.2
    header["interactions"] = header["total"] = len(contents)
    ring = np.zeros(len(contents), INTERACTION)
    for slot, content in enumerate(contents):
        ring[slot]["content"], ring[slot]["action"] = key64(content), action_code(("like", "share")[slot % 2])
        ring[slot]["time"], ring[slot]["weight"] = NOW_MS - 30 * slot * HOUR_MS, 1.0 + slot % 2
        ring[slot]["state"] = UNDONE if slot == len(contents) - 1 else APPLIED
    return header.tobytes() + np.zeros(8, "<f4").tobytes() + ring.tobytes()


def slate(*contents: str) -> Slate:
    items = [
        Item(content, 0.9 - 0.1 * at, Parts(0.6, 0.1, 0.2, 0.0), [Reason(contents[0], "like", 0.7)])
        for at, content in enumerate(contents)
    ]
    return Slate(USER, "2026-05-28T20:26:40.000Z", "m", Cause("likes", 1, 42, "", ""), "personal", items)


def filled(settings: Settings) -> Inspection:
    """A ranker's page after it has ranked one user, whose texts mean ill."""
    index = ContentIndex(settings, "m")
    contents = [b"post-1", ATTACK.encode(), b"post-3", b"post-4"]
    unit = np.eye(8, dtype=np.float16)[0]
    for content in contents:
        index.put(content, ContentVector("m", "", NOW_MS, NOW_MS, unit))
    inspection = Inspection(settings, index)
    titles = {"post-1": "Salt the pasta water", "post-3": ATTACK, "post-4": "How a comet gets two tails"}
    for content_id, title in titles.items():
        value = json.dumps({"title": title}).encode()
        inspection.learn_titles([Read(content_id.encode(), value)])  # type: ignore[list-item]
    inspection.received([Read(USER.encode(), record(contents))])  # type: ignore[list-item]
    for names in (("post-3", "post-1", "post-9"), ("post-1", ATTACK, "post-3", "post-4")):
        inspection.published([Change(0, USER.encode(), slate(*names))])
    return inspection


async def browse(*options: str) -> tuple[str, str]:
    """Standard output and error of headless Chromium, sent to the page of a random user."""
    settings = build({"content": {"capacity": 10, "dimensions": 8}, "inspect": {"port": 0}})
    inspection = filled(settings)
    await inspection.start()
    measuring = asyncio.create_task(inspection.run())
    try:
        command = [tool("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += ["--window-size=1100,1500", "--enable-logging=stderr", *options]
        command.append(f"http://127.0.0.1:{inspection.port}/inspect?random=1")
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True
        )
        return done.stdout, done.stderr
    finally:
        measuring.cancel()
        await inspection.stop()


def test_what_others_wrote_runs_nothing_in_a_browser(tmp_path: Path) -> None:
    dom, errors = asyncio.run(browse("--dump-dom", f"--user-data-dir={tmp_path}"))
    assert "<title>Inspect a slate</title>" in dom
    assert "“Salt the pasta water”" in dom
    assert "<img" not in dom
    assert "<script" not in dom
    assert dom.count("&lt;img src=x") >= 5
    assert "\u202e" not in dom
    assert "Content Security Policy" not in errors, "the page keeps to its own policy"


def test_it_is_drawn(tmp_path: Path) -> None:
    SCREENSHOT.parent.mkdir(exist_ok=True)
    SCREENSHOT.unlink(missing_ok=True)
    asyncio.run(browse(f"--screenshot={SCREENSHOT}", f"--user-data-dir={tmp_path}"))
    drawn = colours(SCREENSHOT.read_bytes())
    assert drawn[BUTTON] > 500, "the style sheet was applied"
    assert drawn[CURVE] > 50, "the plot was drawn"


def colours(png: bytes) -> Counter[tuple[int, int, int]]:
    """How often each colour occurs in an 8-bit PNG with or without transparency."""
    width, height, depth, kind = struct.unpack_from(">IIBB", png, 16)
    assert (depth, kind) in ((8, 2), (8, 6))
    at, packed = 8, b""
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        if png[at + 4 : at + 8] == b"IDAT":
            packed += png[at + 8 : at + 8 + length]
        at += length + 12
    step = 4 if kind == 6 else 3
    lines = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * step)
    above = np.zeros((width, step), np.int64)
    found: Counter[tuple[int, int, int]] = Counter()
    for line in lines:
        above = unfiltered(int(line[0]), line[1:].astype(np.int64).reshape(width, step), above)
        shades, counts = np.unique(above[:, :3], axis=0, return_counts=True)
        for (red, green, blue), count in zip(shades.tolist(), counts.tolist(), strict=True):
            found[red, green, blue] += count
    return found


def unfiltered(kind: int, line: NDArray[np.int64], above: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pixels [width, 3 or 4] of one line of a PNG (PNG specification, section 9)."""
    if kind == 0:
        return line
    if kind == 2:
        return (line + above) & 255
    out = np.zeros_like(line)
    left = corner = np.zeros(line.shape[1], np.int64)
    for at, up in enumerate(above):
        if kind == 1:
            guess = left
        elif kind == 3:
            guess = (left + up) // 2
        else:
            away = np.abs(
                [up - corner, left - corner, left + up - 2 * corner]
            )  # from the left, above, corner
            guess = np.choose(away.argmin(axis=0), [left, up, corner])
        left = out[at] = (line[at] + guess) & 255
        corner = up
    return out
