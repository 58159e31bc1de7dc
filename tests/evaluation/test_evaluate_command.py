"""``stream-app evaluate`` as a person runs it, on a small log without an encoder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest

from stream_app import cli
from stream_app.evaluation import methods, prequential
from stream_app.evaluation.log import Catalogue, columns
from stream_app.evaluation.movielens import Columns, lines
from stream_app.evaluation.scorer import World
from stream_app.replay.formats import LogRecord, open_log, with_actions_of
from stream_app.settings import Settings
from tests.evaluation.small_logs import fashions, read


@pytest.fixture
def log_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log in JSON lines, with vectors drawn by lot in the place of the encoder's."""

    def drawn(settings: Settings, catalogue: Catalogue, progress: object) -> np.ndarray[object, object]:
        vectors = np.random.default_rng(1).normal(size=(len(catalogue), 16))
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    monkeypatch.setattr("stream_app.evaluation.vectors.encoded", drawn)
    path = tmp_path / "log.jsonl"
    with path.open("wb") as file:
        for record in fashions(users=8, contents=30):
            topic = "likes" if record.is_event else record.topic
            file.write(msgspec.json.encode({"topic": topic, "value": msgspec.Raw(record.value or b"null")}))
            file.write(b"\n")
    return path


def test_summary_table_and_plot(log_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary, plot = tmp_path / "summary.json", tmp_path / "plot.svg"
    command = ["evaluate", "--log", str(log_file), "--summary", str(summary), "--plot", str(plot)]
    command += ["--methods", "newest,popularity,decayed popularity,BPR,rank fusion,fixed blend"]
    assert cli.run(command) == 0
    found = json.loads(summary.read_text())
    shown = capsys.readouterr().out
    assert found["targets"]["any"] == found["any"]["targets"] == 216  # 8 users on the last 27 of 30 days
    assert found["ranker"] == "fixed blend"
    best = found["any"]["best_baseline"]
    means = {name: method["slices"]["any"]["ndcg@10"] for name, method in found["methods"].items()}
    assert best["name"] == max(means.keys() - {"fixed blend"}, key=means.__getitem__)
    assert best["ndcg@10"] == means[best["name"]] > means["newest"]
    low, high = found["any"]["intervals"]["ndcg@10"]
    assert low <= found["any"]["ndcg@10"] <= high
    gain = best["gain"]["ndcg@10"][0]
    assert gain == pytest.approx(found["any"]["ndcg@10"] - best["ndcg@10"], abs=2e-4)
    assert set(found["by_history"]) == {"0", "1-4", "5-19", "20+"}
    assert found["older_than_7_days"] == found["by_age"]["older_than_7_days"]
    assert sum(part["targets"] for part in found["by_age"].values() if part) == 216
    assert sum(part["targets"] for part in found["by_history"].values() if part) == 216
    # what learns nothing loses nothing when it is frozen, what follows fashions does
    frozen = {
        name: method["online_against_frozen"]["gain"]["ndcg@10"] for name, method in found["methods"].items()
    }
    assert frozen["newest"] == [0.0, 0.0, 0.0]
    assert frozen["decayed popularity"][1] > 0
    assert f"| {best['name']} | {best['ndcg@10']:.3f} |" in shown
    assert ElementTree.fromstring(plot.read_text()).tag.endswith("svg")  # noqa: S314  # our own

    # and the same figures again
    assert cli.run(command) == 0
    again = json.loads(summary.read_text())
    assert {**found, "ranked_ms": 0} == {**again, "ranked_ms": 0}


def test_unknown_methods_and_logs_without_targets_are_named(
    log_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["evaluate", "--log", str(log_file), "--methods", "oracle"]) == 2
    assert "--methods oracle: expected some of random" in capsys.readouterr().err
    lonely = tmp_path / "lonely.jsonl"
    lonely.write_bytes(b"".join(log_file.read_bytes().splitlines(keepends=True)[:31]))
    assert cli.run(["evaluate", "--log", str(lonely)]) == 2
    assert "no target" in capsys.readouterr().err


def test_parameters_are_chosen_on_the_warm_up_alone() -> None:
    records = fashions()
    events = [i for i, record in enumerate(records) if record.is_event]
    end = events[int(len(events) * prequential.WARM_UP) - 1] + 1
    whole = read(records)
    # another future: everybody stays with one content
    other = read([*records[:end], *(_stays(record) for record in records[end:])])
    assert len(whole) != len(other) or (whole.contents != other.contents).any()
    for name in ("decayed popularity", "item-kNN"):
        one, two = (
            methods.tuned(name, log, World.of(log), 1, lambda text, fraction: None) for log in (whole, other)
        )
        assert one.parameters == two.parameters
        assert one.warm_up_ndcg == two.warm_up_ndcg


def _stays(record: LogRecord) -> LogRecord:
    value = msgspec.json.decode(record.value or b"") | {"content_id": "c59"}
    return LogRecord(record.topic, record.key, msgspec.json.encode(value), record.time_ms)


def test_films_come_out_with_their_first_rating() -> None:
    ratings: Columns = {
        "user_id": [7, 8, 7],
        "movie_id": [1, 1, 2],
        "rating": [3, 4, 5],
        "timestamp": [880_000_020, 880_000_000, 880_000_030],
    }
    films: Columns = {
        "movie_id": [1, 2],
        "movie_title": ["First (1995)", "Second (1996)"],
        "unknown": [0, 0],
        "Comedy": [1, 0],
        "War": [1, 1],
    }
    found = [json.loads(line) for line in lines(ratings, films)]
    assert [line["topic"] for line in found] == ["content", "likes", "ratings", "content", "likes"]
    assert found[0]["value"]["text"] == "Comedy, War"
    assert found[0]["value"]["created_at"] == found[1]["value"]["occurred_at"]
    assert [line["value"].get("user_id") for line in found] == [None, "8", "7", None, "7"]


RECORDED = os.environ.get("STREAM_APP_DATA")


@pytest.mark.skipif(RECORDED is None, reason="STREAM_APP_DATA names no directory with the Deskdrop log")
def test_the_deskdrop_log_has_the_targets_that_were_counted_independently() -> None:
    settings = with_actions_of(Settings(), "deskdrop")
    log = columns(list(open_log(Path(RECORDED or "") / "deskdrop", "deskdrop").records), settings)
    first = int(len(log) * prequential.WARM_UP)
    assert (len(log), int(log.touch[first:].sum()), int(log.strong[first:].sum())) == (70_028, 29_761, 5_481)
