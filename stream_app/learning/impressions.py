"""``impressions`` as a worker follows it: what users were shown, and what they chose from."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from stream_app.content.index import ContentIndex
from stream_app.events.impressions import ImpressionDecoder
from stream_app.events.reasons import Reason
from stream_app.kafka.clock import CLOCK
from stream_app.kafka.records import Record
from stream_app.learning.online import Engagement, Shown
from stream_app.learning.shown import ShownContents, fatigue
from stream_app.observability import metrics
from stream_app.settings import Settings


class FollowedImpressions:
    """Applies records of ``impressions`` to ``shown``."""

    def __init__(self, settings: Settings, role: str) -> None:
        """``role`` says in the metric who reads."""
        self.shown = ShownContents(settings)
        self._decoder = ImpressionDecoder(settings, CLOCK.latest_ms)
        self._strength = settings.ranking.fatigue
        self._role = role

    def apply(
        self, records: Iterable[Record], is_news: Callable[[Record], bool] = lambda _: True
    ) -> list[tuple[bytes, int]]:
        """Take records in their order. Those that cannot be read are counted by reason and skipped.

        Returns of each list that names its slate and ``is_news`` the user, and how many of its contents were
        not known to be shown. What is no news counts for click-through no more: an earlier worker counted it.
        """
        of_slates = []
        for record in records:
            shown = self._decoder.decode(record.key, record.value, record.timestamp)
            if isinstance(shown, Reason):
                metrics.IMPRESSIONS.labels(self._role, shown.value).inc()
                continue
            metrics.IMPRESSIONS.labels(self._role, "taken").inc()
            counts = shown.of_slate and is_news(record)
            new = self.shown.take(shown._replace(of_slate=counts), record.partition)
            if counts:
                of_slates.append((shown.user, new))
        return of_slates

    def chosen_from(self, user: bytes, engagement: Engagement, index: ContentIndex) -> Shown | None:
        """The list that the engagement answers, less what ``index`` does not know; None where none is known.
        What was shown after it is not looked at."""
        answered = self.shown.answered(user, int(index.keys[engagement.row]), engagement.time)
        if answered is None:
            return None
        rows = index.rows_of_keys(answered.keys)
        known = rows >= 0
        penalties = fatigue(answered.tired[known], self._strength)
        return Shown(rows[known], answered.positions[known], penalties)
