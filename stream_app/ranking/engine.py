"""Ranks users in micro-batches on the device, each by the ranker of the user's A/B arm.

The tensor part is in :mod:`stream_app.ranking.choose`. The engine's *now* is stream time, the newest
event time that it was told of: a replayed year is ranked as the year it was. Nothing here depends on the
wall clock.

Numbered steps of a round: 1. :meth:`RankingEngine.adopt` the newest model, 2.
:meth:`RankingEngine.observe` the records' times; and for each micro-batch 3.
:meth:`RankingEngine.refresh` the mirror of the index and the priors, 4.
:meth:`RankingEngine.rank_prepared`. All but the last belong to the thread that changes the index and the
statistics, and must not overlap with the last, which may run in another.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from stream_app.content.index import ContentIndex
from stream_app.errors import DeviceError
from stream_app.events.times import newest_believed
from stream_app.hashing import action_code
from stream_app.learning.shown import ShownContents
from stream_app.observability import metrics
from stream_app.ranking.arms import Arms
from stream_app.ranking.capped import cheapest, crowded, fill, others_of
from stream_app.ranking.catalogue import LiveCatalogue, live_catalogue
from stream_app.ranking.choose import Chosen, Learned, UploadedPriors, choose_by_blend, choose_by_model
from stream_app.ranking.device import DeviceIndex, choose_device, failure_cause, show_memory
from stream_app.ranking.excluded import Excluded, excluded
from stream_app.ranking.explore import Drawn, Explorable, draw, explorable, places
from stream_app.ranking.fatigue import Tired
from stream_app.ranking.histories import Histories, gather
from stream_app.ranking.largest import largest
from stream_app.ranking.learned import LearnedModel
from stream_app.ranking.neighbours import NeighbourTable
from stream_app.ranking.popularity import ContentStatistics
from stream_app.ranking.published import Published
from stream_app.ranking.ranked import BLEND, LEARNED, Item, Kind, Parts, Ranked, Reason, User
from stream_app.ranking.retrieve import Priors, priors
from stream_app.ranking.users import Interest, UserBatch
from stream_app.settings import Settings

log = logging.getLogger(__name__)

CPU_USERS = 32  # users at a time on a CPU: their candidates (10 MB) stay in its caches, 64 ranked slower
FAILURES_IN_A_ROW = 10
"""Device failures in a row after which the worker must stop. Memory that a neighbour took may come free
between two micro-batches, a broken CUDA context comes back only with a new process."""

NO_PARTS = Parts(0.0, 0.0, 0.0, 0.0)
PRIORS_STREAM_MS = 1_000  # priors are renewed once stream time has moved by this much,
PRIORS_WALL_S = 0.5  # or after this long, for the statistics that have come in


class RankingEngine:
    """Ranks contents for users, from their interest records, a content index and its statistics."""

    def __init__(
        self,
        settings: Settings,
        index: ContentIndex,
        statistics: ContentStatistics,
        clock: Callable[[], float] = time.monotonic,
        shown: ShownContents | None = None,
    ) -> None:
        """``clock`` (seconds) says when priors are due; ``shown`` what users were shown, where that is
        known. Raises ConfigurationError when ranking.device is not to be had."""
        self.settings = settings
        self.index = index
        self.statistics = statistics
        self.device = choose_device(settings.ranking.device)
        self._mirror = DeviceIndex(index, self.device)
        self._interest = Interest.of(settings, index.model, index.vectors.shape[1])
        self._actions = {action_code(a.name): a for a in settings.events.actions}
        self._arms = Arms(settings.ranking.arms, settings.ranking.arms_salt)
        self.neighbours: NeighbourTable | None = None
        """Co-engagement; None where nobody is to be ranked by the learned ranker"""
        if any(arm.ranker == LEARNED for arm in settings.ranking.arms):
            if statistics.fit_learning:
                self.neighbours = NeighbourTable(index, settings.learning.neighbours, self.device)
            else:
                log.warning(
                    "interests.stats_half_lives_h are not those of the learned ranker: the blend ranks for "
                    "its arms; leave the setting at its default"
                )
        self._shown = shown
        self._published: Published | None = None
        self._model: LearnedModel | None = None
        self._catalogue: LiveCatalogue | None = None
        self._observed = 0
        self._priors: Priors | None = None
        self._clock = clock
        self._priors_at = 0.0
        self._uploaded: UploadedPriors | None = None
        self._explorable: Explorable | None = None
        self._departures = 0  # from the index, as of the last refresh
        self._broken: str | None = None  # why the mirror could not be refreshed
        self._failures = 0  # of the device, in a row

    @property
    def now(self) -> int:
        """Stream time, ms; before any event, the time of the newest content."""
        now = max(self.statistics.stream_time, self._observed)
        return now or min(
            int(self.index.created_at[: self.index.high].max(initial=0)), newest_believed(self.settings)
        )

    def observe(self, users: Sequence[User]) -> None:
        """Let stream time advance to the newest event of these records."""
        newest = max((record.t_ref for _, record in users if record is not None), default=0)
        self._observed = max(self._observed, min(newest, newest_believed(self.settings)))

    def arm_of(self, user_id: bytes) -> str:
        """Name of the user's A/B arm."""
        return self._arms.of(user_id).name

    def adopt(self, published: Published | None) -> None:
        """Rank with this model from now on, with none where it is None."""
        if published is self._published:
            return
        model = None
        if published is not None:
            try:
                model = LearnedModel.of(published.model, published.habits, published.version, self.device)
            except RuntimeError as error:  # the model so far goes on; this one is tried again
                self._device_failure(error)
                return
        self._published, self._model = published, model
        metrics.RANKER_VERSION.set(0 if published is None else published.version)
        self._priors = None  # what the model reads of the catalogue is computed with them

    def refresh(self) -> None:
        """Bring mirror and priors up to date. Cheap when nothing changed.

        When the device fails, the next rankings are fallbacks until a refresh succeeds. Raises
        DeviceError when it fails again and again.
        """
        self.index.evict(self.now)
        changed, self._departures = self._mirror.refresh(), self.index.departures
        self.statistics.adopt(changed)
        self._broken = None
        try:
            self._mirror.copy()
            if self.neighbours is not None:
                self.neighbours.adopt(changed, self._mirror.rows_of)
        except RuntimeError as error:
            self._broken = self._device_failure(error)
        clock, now, old = self._clock(), self.now, self._priors
        if (
            old is None
            or len(changed)
            or len(old.bias) != self.index.high
            or abs(now - old.now) >= PRIORS_STREAM_MS
            or clock - self._priors_at >= PRIORS_WALL_S
        ):
            with metrics.RANK_SECONDS.labels("priors").time():
                self._priors = priors(self.settings, self.index, self.statistics, self._mirror.texts, now)
                self._catalogue = self._catalogue_now(self._priors)
                if places(self.settings.ranking):
                    self._explorable = self._explorable_now(self._priors)
            self._priors_at = clock
            show_memory(self.device)
            self._uploaded = None

    def rank(self, users: Sequence[User]) -> list[Ranked]:
        """Refresh, then rank: for whoever uses one thread."""
        self.refresh()
        return self.rank_prepared(users)

    def rank_prepared(self, users: Sequence[User]) -> list[Ranked]:
        """One ranking for each user, in their order, as of the last refresh.

        A user's ranking does not depend on the others. A device failure is logged and counted, and its
        micro-batch gets the fallback; any other error is raised, and DeviceError after
        ``FAILURES_IN_A_ROW``: fallbacks must not go on unnoticed, a new process may have a device.
        """
        size = self.settings.ranking.batch_users
        if self.device.type == "cpu":
            size = min(size, CPU_USERS)
        arms = [self._arms.of(user_id) for user_id, _ in users]
        found: dict[int, Ranked] = {}
        for ranker in (BLEND, LEARNED):
            places = [place for place, arm in enumerate(arms) if arm.ranker == ranker]
            learned = self._learned() if ranker == LEARNED else None
            if ranker == LEARNED and learned is None and places:
                metrics.FALLBACKS.labels("no_model").inc(len(places))
            for start in range(0, len(places), size):
                some = places[start : start + size]
                found.update(zip(some, self._micro_batch([users[i] for i in some], learned), strict=True))
        ranked = [found[i] for i in range(len(users))]
        for one, arm in zip(ranked, arms, strict=True):
            one.arm = arm.name
        for (name, ranker), count in Counter((one.arm, one.ranker) for one in ranked).items():
            metrics.ARM_USERS.labels(name, ranker.partition("-")[0]).inc(count)
        return ranked

    def _micro_batch(self, users: Sequence[User], learned: Learned | None) -> list[Ranked]:
        """One ranking for each of these users, by the learned ranker or by the blend."""
        if self._broken is not None:
            return self.fallback(users, self._broken)
        try:
            found = self._rank(users, learned)
        except RuntimeError as error:
            return self.fallback(users, self._device_failure(error))
        self._failures = 0
        return found

    def without_deleted(self, ranked: Iterable[Ranked]) -> Iterable[Ranked]:
        """Rankings of the last refresh less what has left the index since, as items and as reasons; on the
        index's thread."""
        if self.index.departures == self._departures:
            return ranked
        return map(self._less_deleted, ranked)

    def _less_deleted(self, ranked: Ranked) -> Ranked:
        named = {i.content_id for i in ranked.items} | {r.content_id for i in ranked.items for r in i.reasons}
        gone = {content_id for content_id in named if content_id.encode() not in self.index.rows}
        if not gone:
            return ranked
        items = [
            msgspec.structs.replace(i, reasons=[r for r in i.reasons if r.content_id not in gone])
            for i in ranked.items
            if i.content_id not in gone
        ]
        return replace(ranked, items=items)

    def fallback(self, users: Sequence[User], cause: str) -> list[Ranked]:
        """The cheap list for each user: fresh and popular, less what the user has seen. NumPy only.

        ``cause`` is counted in metrics.FALLBACKS.
        """
        metrics.FALLBACKS.labels(cause).inc(len(users))
        metrics.RANKED_USERS.labels("fallback").inc(len(users))
        known, ranking, size = self._known_priors(), self.settings.ranking, self.settings.ranking.batch_users
        found = []
        for start in range(0, len(users), size):
            some = users[start : start + size]
            by_user = self._excluded(some).by_user(len(some))
            # enough for the one who must not be shown most of what is on top
            enough = ranking.candidates + max(map(len, by_user), default=0)
            popular = self._popular_rows(known, enough)
            for (user_id, record), without in zip(some, by_user, strict=True):
                chosen, gives_way = self._cheapest(popular, without)
                if gives_way and len(popular) == enough:  # others may come after these
                    chosen, _ = self._cheapest(self._popular_rows(known, len(known.bias)), without)
                parts = np.zeros((len(chosen), 4))
                parts[:, 1] = ranking.weight_recency * known.recency[chosen]
                parts[:, 2] = ranking.weight_popularity * known.popularity[chosen]
                parts = np.round(parts, 6)
                scores = np.round(parts.sum(axis=1), 6).tolist()
                nothing: list[list[Reason]] = [[] for _ in scores]
                items = self._items(chosen.tolist(), scores, parts.tolist(), [0.0] * len(scores), nothing)
                found.append(Ranked(user_id, record, "fallback", items))
        return found

    def _cheapest(
        self, popular: NDArray[np.int64], without: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], bool]:
        rows = popular[~np.isin(popular, without)]
        ranking = self.settings.ranking
        return cheapest(rows, self._mirror.written_by[rows], ranking.author_cap, ranking.slate_size)

    def _device_failure(self, error: RuntimeError) -> str:
        """Log and count it; its cause. Raises the error itself when the fault is in the code."""
        cause = failure_cause(error)
        if cause is None:
            raise error
        self._failures += 1
        metrics.DEVICE_FAILURES.labels(cause).inc()
        log.error("%s failed (%s): %s", self.device, cause, str(error).split("\n")[0])
        if self._failures >= FAILURES_IN_A_ROW:
            raise DeviceError(
                f"{self.device} failed {self._failures} times in a row ({cause}): stopping, so that this "
                "worker is started anew; ranking.device = cpu does without the device"
            ) from error
        return cause

    def _excluded(self, users: Sequence[User]) -> Excluded:
        """What must not be recommended to these users."""
        return excluded(users, self._mirror, self.settings.ranking.own)

    def _popular_rows(self, known: Priors, count: int) -> NDArray[np.int64]:
        """The ``count`` rows with the largest priors, best first; fewer where fewer may be recommended."""
        rows = largest(known.bias, self.index.keys[: len(known.bias)], count)
        return rows[known.bias[rows] > -np.inf]

    def _known_priors(self) -> Priors:
        if self._priors is None:
            self.refresh()
        assert self._priors is not None  # noqa: S101  # refresh sets it
        return self._priors

    @torch.inference_mode()
    def _rank(self, users: Sequence[User], learned: Learned | None) -> list[Ranked]:
        batch, chosen, personal = self._choose(users, learned, self._excluded(users))
        ranker = BLEND if learned is None else f"{LEARNED}-{learned.model.version}"
        with metrics.RANK_SECONDS.labels("assemble").time():
            return self._assemble(users, batch, chosen, personal, ranker)

    def _choose(
        self, users: Sequence[User], learned: Learned | None, without: Excluded
    ) -> tuple[UserBatch, Chosen | None, NDArray[np.bool_]]:
        """The users as they are read, their slates if there is any content, and who of them [B] is known."""
        records = [record for _, record in users]
        ranking, mirror = self.settings.ranking, self._mirror
        with metrics.RANK_SECONDS.labels("gather").time():
            now = self._known_priors().now
            batch = self._interest.gather(records, now, mirror.rows_of, without)
            personal, read = batch.personal, None
            if learned is not None:
                known = learned.catalogue
                read = gather(
                    Histories.of(records, mirror.rows_of),
                    known.now,
                    known.created_at,
                    known.authors,
                    known.readers,
                    learned.model.habits,
                )
                personal = read.lengths > 0
            who = [user_id for user_id, _ in users]
            tired = Tired.of(who, self._shown, now, ranking.fatigue, mirror.rows_of)
        if not mirror.high:
            return batch, None, personal
        if learned is not None and read is not None:
            bias = self._priors_on_device().bias
            chosen = choose_by_model(ranking, mirror, bias, learned, batch, read, tired)
        else:
            chosen = choose_by_blend(ranking, mirror, self._priors_on_device(), batch, tired)
        self._spread(users, learned, without, chosen)
        return batch, chosen, personal

    def _spread(
        self, users: Sequence[User], learned: Learned | None, without: Excluded, chosen: Chosen
    ) -> None:
        """Choose once more where one author took too many places, as all candidates were that author's."""
        cap, authors = self.settings.ranking.author_cap, self._mirror.written_by
        again = crowded(chosen, authors, cap)
        if not len(again):
            return
        too_many = others_of(chosen.rows[again], authors, self._mirror.by_author, cap)
        _, more, _ = self._choose([users[i] for i in again], learned, without.of(again).plus(too_many))
        if more is not None:
            for place, user in enumerate(again.tolist()):
                fill(chosen, user, more, place)

    def _explorable_now(self, known: Priors) -> Explorable:
        each = self.settings.ranking.explore_from
        return explorable(self.index, self.statistics, known.bias > -np.inf, known.now, each)

    def _catalogue_now(self, known: Priors) -> LiveCatalogue | None:
        """What the learned ranker reads of the catalogue; None where nobody is ranked by it."""
        if self._model is None or self.neighbours is None:
            return None
        try:
            return live_catalogue(
                self.index,
                self._mirror,
                self.statistics,
                self.neighbours.readers,
                known.bias > -np.inf,
                known.now,
                self.settings.ranking.candidates_popular,
            )
        except RuntimeError as error:
            self._broken = self._device_failure(error)
            return None

    def _learned(self) -> Learned | None:
        """The learned ranker, where there is one to rank with."""
        if self._model is None or self._catalogue is None or self.neighbours is None:
            return None
        return Learned(self._model, self._catalogue, self.neighbours)

    def _priors_on_device(self) -> UploadedPriors:
        if self._uploaded is None:
            known = self._known_priors()
            self._uploaded = UploadedPriors(
                *(torch.from_numpy(a).to(self.device) for a in (known.bias, known.recency, known.popularity))
            )
        return self._uploaded

    def _assemble(
        self,
        users: Sequence[User],
        batch: UserBatch,
        chosen: Chosen | None,
        personal: NDArray[np.bool_],
        ranker: str,
    ) -> list[Ranked]:
        kinds: list[Kind] = ["personal" if one else "cold_start" for one in personal.tolist()]
        for kind in ("personal", "cold_start"):
            metrics.RANKED_USERS.labels(kind).inc(kinds.count(kind))
        drawn = None
        if chosen is not None and self._explorable is not None:
            names, now = [user_id for user_id, _ in users], self._known_priors().now
            drawn = draw(self.settings.ranking, self._explorable, names, batch.excluded, chosen.rows, now)
        items: list[list[Item]] = [[] for _ in users]
        if chosen is not None:
            scores = np.round(chosen.parts.sum(axis=2) - chosen.fatigue, 6)
            columns = (chosen.rows, scores, chosen.parts, chosen.fatigue)
            reasons = self._reasons(batch, chosen)
            items = list(map(self._items, *(column.tolist() for column in columns), reasons))
        if drawn is not None:
            items = [self._with_drawn(own, drawn, i) for i, own in enumerate(items)]
        return [
            Ranked(user_id, record, kind, own, ranker=ranker)
            for (user_id, record), kind, own in zip(users, kinds, items, strict=True)
        ]

    def _reasons(self, batch: UserBatch, chosen: Chosen) -> list[list[list[Reason]]]:
        """The reasons of each place of each user's slate; none for cold start."""
        ids, actions_of = self._mirror.ids, self._actions
        columns = (batch.recent_rows, batch.recent_actions, chosen.shares, chosen.reasons)
        found = []
        for rows, actions, shares_, slots in zip(*(column.tolist() for column in columns), strict=True):
            said: list[list[Reason]] = []
            for place in zip(shares_, slots, strict=True):
                why = []
                for share, slot in zip(*place, strict=True):
                    if share > 0:
                        action, content_id = actions_of.get(actions[slot]), ids[rows[slot]]
                        if action is not None and content_id is not None:
                            why.append(Reason(_text(content_id), action.name, share))
                said.append(why)
            found.append(said)
        return found

    def _with_drawn(self, items: list[Item], drawn: Drawn, user: int) -> list[Item]:
        """The slate with what is explored in its last places."""
        explored = [
            Item(_text(content_id), 0.0, NO_PARTS, [], "explore", propensity)
            for row, propensity in zip(
                drawn.rows[user].tolist(), drawn.propensity[user].tolist(), strict=True
            )
            if row >= 0 and (content_id := self._mirror.ids[row]) is not None
        ]
        metrics.EXPLORED.inc(len(explored))
        twice = {item.content_id for item in explored}
        first = self.settings.ranking.slate_size - len(explored)
        return [item for item in items if item.content_id not in twice][:first] + explored

    def _items(
        self,
        rows: list[int],
        scores: list[float],
        parts: list[list[float]],
        fatigue: list[float],
        reasons: list[list[Reason]],
    ) -> list[Item]:
        """Items of one slate, whose ``rows`` [k] are -1 where there is none; ``parts`` [k, P]."""
        ids, items = self._mirror.ids, []
        for row, score, part, lost, why in zip(rows, scores, parts, fatigue, reasons, strict=True):
            if row >= 0 and (content_id := ids[row]) is not None:
                known = Parts(*part)
                if lost:
                    known = msgspec.structs.replace(known, fatigue=-lost)
                items.append(Item(_text(content_id), score, known, why))
        return items


def _text(identity: bytes) -> str:
    return identity.decode(errors="replace")
