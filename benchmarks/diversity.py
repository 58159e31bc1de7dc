"""What variety and balance of slates cost: NDCG@10 over ``ranking.diversity`` and ``ranking.calibration``.

``python benchmarks/diversity.py --log DIRECTORY/deskdrop [--config FILE] [--limit 8000] [--plot FILE]``

The log is replayed once, as ``stream-app evaluate`` does it, and the scored candidates of each target kept.
No ranking changes what is learned, so every setting can then be tried on the same candidates. Beside NDCG@10,
and its paired difference from slates by score alone (95 % over users): *variety*, mean of 1 - cosine within a
slate; *closest*, mean of the largest cosine within one; coverage; and of users with several large sides (15 %
of their recent interests or more each) which part of these sides the slate shows, and how far its parts are
from theirs (total variation: the part of the places that would have to change sides).
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from torch import Tensor

from stream_app import settings as configuration
from stream_app.evaluation import metrics, movielens, prequential
from stream_app.evaluation.learned import LearnedRanker
from stream_app.evaluation.log import EvaluationLog, columns
from stream_app.evaluation.metrics import Bootstrap
from stream_app.evaluation.product import LiveRanker
from stream_app.evaluation.scorer import Scores, Touch, World
from stream_app.evaluation.vectors import encoded
from stream_app.ranking import choose
from stream_app.ranking.device import DeviceIndex, limit_threads
from stream_app.ranking.diversify import diversify
from stream_app.ranking.sides import Sides, sides
from stream_app.ranking.users import UserBatch
from stream_app.replay.formats import detect, open_log, with_actions_of
from stream_app.replay.progress import Progress
from stream_app.settings import Ranking

LARGE = 0.15
COLUMNS = (
    "λ",
    "calibration",
    "NDCG@10",
    "less by score alone",
    "hit",
    "variety",
    "closest",
    "coverage",
    "sides shown",
    "off",
)
AT_ONCE = 128


class Target(NamedTuple):
    """What was known before one target: numbers of contents as in the log's catalogue."""

    contents: NDArray[np.int64]
    """[K], candidates"""
    scores: NDArray[np.float32]
    """[K]"""
    recent: NDArray[np.int64]
    """[R], the recent interactions' contents"""
    weights: NDArray[np.float32]
    """[R]"""


class Replayed:
    """Slates that were made before, in the order of the targets."""

    def __init__(self, slates: NDArray[np.int64]) -> None:
        self._slates = iter(slates)

    def score(self, now: int, user: int, count: int) -> Scores:
        """The next one's places, from the last up."""
        slate, scores = next(self._slates), np.full(count, -np.inf)
        slate = slate[slate >= 0]
        scores[slate] = np.arange(len(slate), 0, -1)
        return scores

    def update(self, touch: Touch) -> None:
        """Nothing to learn."""


def kept(log: EvaluationLog, live: LiveRanker, seed: int, progress: Progress) -> list[Target]:
    """Replay the log, and keep what each slate was made of."""
    numbers = {name: number for number, name in enumerate(log.catalogue.ids)}
    found: list[Target] = []
    original = choose.diversified

    def keeping(
        ranking: Ranking,
        mirror: DeviceIndex,
        batch: UserBatch,
        rows: Tensor,
        valid: Tensor,
        vectors: Tensor,
        scores: Tensor,
    ) -> Tensor:
        def contents(of: NDArray[np.int64]) -> NDArray[np.int64]:
            return np.array([numbers[mirror.ids[row] or b""] for row in of.tolist()], np.int64)

        there, weighed = valid[0].numpy(), batch.recent_share[0] != 0
        found.append(
            Target(
                contents(rows[0].numpy()[there]),
                scores[0].numpy()[there],
                contents(batch.recent_rows[0][weighed]),
                batch.recent_share[0][weighed],
            )
        )
        return original(ranking, mirror, batch, rows, valid, vectors, scores)

    choose.diversified = keeping
    prequential.run(log, live, seed=seed, progress=partial(progress.show, "replaying"))
    choose.diversified = original
    return found


class Bench:
    """Slates of all targets by any setting, and what is to be said of them."""

    def __init__(self, log: EvaluationLog, world: World, targets: list[Target], seed: int) -> None:
        self._log, self._world, self._targets, self._seed = log, world, targets, seed
        self._vectors = torch.from_numpy(world.vectors)
        self._authors = torch.from_numpy(world.authors.view(np.int64).copy())
        self._mean = self._vectors.mean(dim=0)
        self._alone: NDArray[np.float64] | None = None

    def line(self, ranking: Ranking) -> tuple[str, list[float]]:
        """A row of the table; and NDCG, variety and how far the parts are off."""
        slates, shown, off = self._slates(ranking)
        outcome = prequential.run(self._log, Replayed(slates), seed=self._seed)
        gains = metrics.gains(outcome)
        self._alone = gains[0] if self._alone is None else self._alone
        every = np.ones(gains.shape[1], np.bool_)
        less = Bootstrap(outcome, self._seed).estimate(gains[0] - self._alone, every)
        ndcg, variety = float(gains[0].mean()), metrics.intra_list_diversity(outcome, self._world.vectors)
        change = "-" if less is None else f"{less.mean:+.4f} ({less.low:+.4f} to {less.high:+.4f})"
        cells = (
            f"{ranking.diversity:g}",
            f"{ranking.calibration:g}",
            f"{ndcg:.4f}",
            change,
            f"{gains[1].mean():.3f}",
            f"{variety:.3f}",
            f"{self._closest(outcome.lists):.2f}",
            f"{metrics.coverage(outcome):.2f}",
            f"{shown:.2f}",
            f"{off:.2f}",
        )
        return "| " + " | ".join(cells) + " |", [ndcg, variety, off]

    def _slates(self, ranking: Ranking) -> tuple[NDArray[np.int64], float, float]:
        slates, shown, off = [], [], []
        for start in range(0, len(self._targets), AT_ONCE):
            some = self._targets[start : start + AT_ONCE]
            contents, valid = _padded([t.contents for t in some])
            recent, _ = _padded([t.recent for t in some])
            scores, _ = _padded([t.scores for t in some])
            weights, _ = _padded([t.weights for t in some])
            vectors = self._vectors[contents]
            own = sides(vectors, self._vectors[recent], weights, self._mean)
            chosen = diversify(
                scores,
                valid,
                vectors,
                self._authors[contents],
                prequential.PLACES,
                ranking.diversity,
                ranking.author_cap,
                own if ranking.calibration else None,
                ranking.calibration,
            )
            slates.append(torch.where(chosen < 0, -1, contents.gather(1, chosen.clamp(min=0))).numpy())
            part, distance = _balance(own, chosen)
            shown.append(part)
            off.append(distance)
        return np.concatenate(slates), float(torch.cat(shown).mean()), float(torch.cat(off).mean())

    def _closest(self, lists: NDArray[np.int32]) -> float:
        found = []
        for start in range(0, len(lists), 1024):
            some = lists[start : start + 1024]
            vectors = self._world.vectors[np.maximum(some, 0)] * (some >= 0)[:, :, None]
            cosines = vectors @ vectors.transpose(0, 2, 1)
            cosines[:, np.arange(some.shape[1]), np.arange(some.shape[1])] = -1
            found.append(cosines.max(axis=(1, 2)))
        return float(np.concatenate(found).mean())


def _padded(arrays: list[NDArray[np.generic]]) -> tuple[Tensor, Tensor]:
    """[B, longest] with zeros, and where there is something."""
    longest = max(1, *(len(a) for a in arrays))
    whole = np.zeros((len(arrays), longest), arrays[0].dtype)
    for row, array in zip(whole, arrays, strict=True):
        row[: len(array)] = array
    lengths = np.array([len(a) for a in arrays])
    return torch.from_numpy(whole), torch.from_numpy(np.arange(longest) < lengths[:, None])


def _balance(own: Sides, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Of the users with several large sides: the part of these that is shown, and the distance."""
    places = torch.zeros_like(own.shares)
    places.scatter_add_(1, own.of.gather(1, chosen.clamp(min=0)), (chosen >= 0).float())
    large = own.shares >= LARGE
    several = large.sum(dim=1) > 1
    parts = places / places.sum(dim=1, keepdim=True).clamp(min=1)
    shown = ((places > 0) & large).sum(dim=1) / large.sum(dim=1).clamp(min=1)
    return shown[several], ((parts - own.shares).abs().sum(dim=1) / 2)[several]


def svg(title: str, curves: dict[str, list[tuple[str, float, float]]]) -> str:
    """One panel a curve: NDCG@10 (up) over its x, points named by their settings."""
    wide, tall, edge = 430, 300, 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {len(curves) * (wide + edge) + edge} '
        f'{tall + 2 * edge}" font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="20" y="22" font-size="14">{title}</text>',
    ]
    for panel, (name, points) in enumerate(curves.items()):
        left, below = edge + panel * (wide + edge), edge + tall
        xs, ys = [x for _, x, _ in points], [y for _, _, y in points]
        low, high = min(ys) * 0.98, max(ys) * 1.01
        start, width = min(xs), max(max(xs) - min(xs), 1e-9)
        at = [
            (left + 20 + (wide - 60) * (x - start) / width, below - tall * (y - low) / (high - low))
            for x, y in zip(xs, ys, strict=True)
        ]
        parts.append(f'<path d="M{left} {edge}V{below}H{left + wide}" fill="none" stroke="#999"/>')
        parts.append(f'<text x="{left + wide / 2}" y="{below + 34}" text-anchor="middle">{name}</text>')
        parts.extend(
            f'<text x="{left - 6}" y="{below - tall * tick / 4 + 4:.0f}" text-anchor="end">'
            f"{low + (high - low) * tick / 4:.3f}</text>"
            for tick in range(5)
        )
        line = "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
        parts.append(f'<path d="M{line}" fill="none" stroke="#1b6ca8" stroke-width="2"/>')
        for (label, x_value, _), (x, y) in zip(points, at, strict=True):
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="#c8553d"/>')
            parts.append(f'<text x="{x + 6:.1f}" y="{y - 6:.1f}">{label}</text>')
            parts.append(f'<text x="{x:.1f}" y="{below + 14}" text-anchor="middle">{x_value:.2f}</text>')
    return "\n".join([*parts, "</svg>\n"])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--log", type=Path, required=True, help="as for `stream-app evaluate`")
    parser.add_argument("--config")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ranker", choices=("learned", "blend"), default="learned")
    parser.add_argument("--diversity", type=float, nargs="+", default=[0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95])
    parser.add_argument("--calibration", type=float, nargs="+", default=[0.03, 0.1, 0.3, 1])
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    settings = configuration.load(args.config)
    path, progress = args.log, Progress()
    if str(path) == movielens.NAME:
        path = movielens.fetched(progress.finish)
        settings = replace(settings, events=replace(settings.events, actions=movielens.ACTIONS))
    log_format = detect(path)
    settings = with_actions_of(settings, log_format)
    limit_threads(settings.ranking.threads)
    log = columns(list(open_log(path, log_format, args.limit).records), settings)
    vectors = encoded(settings, log.catalogue, partial(progress.show, "encoding the contents"))
    world = World.of(log, vectors)
    learner = partial(
        LearnedRanker,
        recent=settings.interests.recent,
        neighbours=settings.learning.neighbours,
        seed=args.seed,
    )
    live = LiveRanker(world, settings, log, learner if args.ranker == "learned" else None)
    targets = kept(log, live, args.seed, progress)
    progress.finish(f"{len(targets):,} targets")
    bench = Bench(log, world, targets, args.seed)
    print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS))
    ranking = settings.ranking
    curves: dict[str, list[tuple[str, float, float]]] = {"variety, at λ": [], "off, at calibration": []}
    for value in args.diversity:
        line, (ndcg, variety, off) = bench.line(replace(ranking, diversity=value, calibration=0.0))
        curves["variety, at λ"].append((f"{value:g}", variety, ndcg))
        print(line, flush=True)
        if value == ranking.diversity:
            curves["off, at calibration"].append(("0", off, ndcg))
    for value in args.calibration:
        line, (ndcg, _, off) = bench.line(replace(ranking, calibration=value))
        curves["off, at calibration"].append((f"{value:g}", off, ndcg))
        print(line, flush=True)
    if args.plot:
        args.plot.write_text(svg(f"NDCG@10, {args.log.name}: {len(log):,} events", curves), encoding="utf-8")


if __name__ == "__main__":
    main()
