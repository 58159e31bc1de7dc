"""Every Prometheus metric of the product. No user or content id is ever a label.

``docs/METRICS.md`` documents each; a test fails when one is missing there.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_FAST = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_FRESH = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 4, 16, 64, 256, 1024, 4096, 16_384, 65_536)

EVENTS = Counter("stream_app_events", "Input records by action and outcome.", ["action", "outcome"])
DEAD_LETTERS = Counter("stream_app_dead_letters", "Dead-lettered records by reason.", ["reason"])
BATCH_RECORDS = Histogram("stream_app_batch_records", "Records in one batch.", ["role"], buckets=_SIZES)
STATE_SECONDS = Histogram("stream_app_state_seconds", "Seconds of one batch's step on the state path.", ["step"], buckets=_FAST)
USERS_TOUCHED = Counter("stream_app_users_touched", "User records changed (changelog records).")
CHANGELOG_BYTES = Counter("stream_app_changelog_bytes", "Bytes of changelog values sent.")
USERS_EXPIRED = Counter("stream_app_users_expired", "Faded users dropped.")
ERASURES = Counter("stream_app_erasures", "Requests to erase a user by result: erased, or rejected as a dead letter.", ["result"])
ERASURES_UNSWEPT = Gauge("stream_app_erasures_unswept", "Erased users whose copies on events-retry and events-dlq are still there.", ["partition"])
ERASED_COPIES = Counter("stream_app_erased_copies", "Copies of erased users' events that were removed, by topic.", ["topic"])
FENCES = Gauge("stream_app_fences", "Erased users whose late events are refused.", ["partition"])
SLAB_ROWS = Gauge("stream_app_slab_rows", "Users held in memory.", ["partition"])
TRANSACTIONS = Counter("stream_app_transactions", "Kafka transactions by result.", ["result"])
RECOVERY_RECORDS = Counter("stream_app_recovery_records", "Changelog records read in recovery or standby.", ["mode"])
RECOVERY_SECONDS = Histogram("stream_app_recovery_seconds", "Seconds to recover one partition.", buckets=_FRESH)
REBALANCES = Counter("stream_app_rebalances", "Assignments received.", ["role"])
CONTENT_ENCODED = Counter("stream_app_content_encoded", "Content texts encoded.")
ENCODE_SECONDS = Histogram("stream_app_encode_seconds", "Seconds to encode one batch of texts.", buckets=_FAST)
CONTENT_INDEXED = Gauge("stream_app_content_indexed", "Contents in the index.")
CONTENT_EVICTED = Counter("stream_app_content_evicted", "Contents evicted from the index by cause.", ["cause"])
CONTENT_REJECTED = Counter("stream_app_content_rejected", "Content records rejected by reason.", ["reason"])
RANKED_USERS = Counter("stream_app_ranked_users", "Users ranked by kind.", ["kind"])
RANK_SECONDS = Histogram("stream_app_rank_seconds", "Seconds of one micro-batch by step.", ["step"], buckets=_FAST)
SLATES = Counter("stream_app_slates", "Slates by result.", ["result"])
SLATES_RENEWED = Counter("stream_app_slates_renewed", "Slates made anew because a content in them was deleted.")
LEDGER_SEARCHES = Counter("stream_app_ledger_searches", "Searches of `recommendations` for slates with deleted contents, because there are more users than `recommendations.remembered_users`.")
FRESHNESS_SECONDS = Histogram("stream_app_freshness_seconds", "From an event's Kafka timestamp to the committed slate.", buckets=_FRESH)
CONSUMER_LAG = Gauge("stream_app_consumer_lag", "Records not yet processed.", ["topic", "partition"])
STANDBY_LAG = Gauge("stream_app_standby_lag", "Changelog records that a warm copy is behind.", ["topic", "partition"])
QUEUE_DEPTH = Gauge("stream_app_queue_depth", "Entries waiting in a queue.", ["queue"])
FALLBACKS = Counter("stream_app_fallbacks", "Cheaper lists published instead of a full ranking.", ["cause"])
DEVICE_FAILURES = Counter("stream_app_device_failures", "Failures of the ranking device by cause; ten in a row stop the worker.", ["cause"])
RANKER_REJECTED = Counter("stream_app_ranker_rejected", "Records that the ranker could not read and skipped, by topic.", ["topic"])
