"""All settings: frozen sections, one per stage. Nothing else reads the environment.

Sources, later ones win: the defaults below; a TOML file (``--config FILE`` or
``STREAM_APP_CONFIG``) with one table a section; environment variables
``STREAM_APP_<SECTION>_<FIELD>``; and ``STREAM_APP_BROKER``, short for ``STREAM_APP_KAFKA_BROKER``.
Passwords come from the environment or from files of their own only.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from stream_app import sources
from stream_app.addresses import addresses
from stream_app.errors import ConfigurationError
from stream_app.hashing import action_code
from stream_app.secret import Secret

ENV_PREFIX = sources.ENV_PREFIX
OWN_TOPICS = ("events-retry", "events-routed", "events-dlq", "erasures", "impressions", "content", "content-vectors", "interests", "content-stats", "erasure-receipts", "models", "co-engagement", "recommendations")

MOST_ACTIONS = 16

COPY_BYTES = 16_384
"""What a retry or a dead letter may have beside the event itself: its key, and our headers."""

Count = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0)]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the sections: immutable, unknown keys refused."""


class Kafka(Section, frozen=True):
    """Connection, consumer and topics."""

    broker: Annotated[str, Meta(description="Bootstrap servers, `host:port[,host:port]`; an IPv6 address stands in brackets. Also `STREAM_APP_BROKER`.")] = "127.0.0.1:9092"
    security_protocol: Annotated[str, Meta(description="`PLAINTEXT`, `SSL` (TLS, with or without a client certificate), `SASL_PLAINTEXT` (user and password, unencrypted) or `SASL_SSL` (user and password over TLS).", pattern="^(PLAINTEXT|SSL|SASL_PLAINTEXT|SASL_SSL)$")] = "PLAINTEXT"
    ssl_ca_file: Annotated[str, Meta(description="Certificates (PEM) of the authorities that may vouch for the broker; empty: those that the system trusts.")] = ""
    ssl_check_hostname: Annotated[bool, Meta(description="The broker's certificate must name the host that was connected to.")] = True
    ssl_certificate_file: Annotated[str, Meta(description="Our certificate (PEM, with its chain), where the broker asks for one.")] = ""
    ssl_key_file: Annotated[str, Meta(description="Its private key (PEM).")] = ""
    ssl_key_password: Annotated[Secret, Meta(description="Password of an encrypted private key. Refused in the TOML file.")] = Secret()
    ssl_key_password_file: Annotated[str, Meta(description="File whose one line is that password, instead of it.")] = ""
    sasl_mechanism: Annotated[str, Meta(description="`PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`.", pattern="^(PLAIN|SCRAM-SHA-256|SCRAM-SHA-512)$")] = "PLAIN"
    sasl_username: Annotated[str, Meta(description="User name on the broker.")] = ""
    sasl_password: Annotated[Secret, Meta(description="The user's password. Refused in the TOML file.")] = Secret()
    sasl_password_file: Annotated[str, Meta(description="File whose one line is the password, instead of it; read anew whenever a client is made.")] = ""
    app_id: Annotated[str, Meta(description="Prefix of consumer groups and transactional ids.", pattern=r"^[A-Za-z0-9._-]{1,64}$")] = "stream-app"
    topic_prefix: Annotated[str, Meta(description="Put before every topic's name.", pattern=r"^[A-Za-z0-9._-]{0,64}$")] = ""
    partitions: Annotated[Count, Meta(description="Partitions of the interests table and of what belongs to it. Event topics that `stream-app topics` creates get as many; those of a platform may have any number.")] = 4
    shared_partitions: Annotated[Count, Meta(description="Partitions of the topics that every worker reads whole, of the dead letters and of the slates.")] = 4
    replication_factor: Annotated[Count, Meta(description="Replication of topics that `stream-app topics` creates.")] = 1
    event_retention_days: Annotated[Count, Meta(description="Retention of event topics, retries and dead letters.")] = 7
    compaction_lag_h: Annotated[Positive, Meta(description="What was deleted or replaced leaves the log of `interests`, `recommendations` and `erasure-receipts` at the broker's first compaction after this time (`max.compaction.lag.ms`); segments of `erasures`, of the retry topics, of `events-routed` and of `events-dlq` are closed after it (`segment.ms`).")] = 24.0
    delete_retention_h: Annotated[Positive, Meta(description="How long the broker keeps the tombstones of compacted topics (`delete.retention.ms`). A state directory that has not followed its changelog for three quarters of it is rebuilt, because it may have missed some.")] = 24.0
    batch_records: Annotated[Count, Meta(description="Most records of one partition in one batch.")] = 40_000
    fetch_max_bytes: Annotated[int, Meta(description="Most bytes fetched for one partition at a time.", ge=65_536)] = 8_388_608
    batch_max_bytes: Annotated[int, Meta(description="Most bytes that a compressed record batch may unpack to. A larger one is not unpacked: its offsets get `oversized_batch`. Producers make batches of some 16 kB to 1 MB; a worker needs room for one of this size a partition.", ge=1_048_576)] = 67_108_864
    fetch_max_wait_ms: Annotated[int, Meta(description="How long the broker may hold a fetch that leaves partitions out, because their last records still wait in the worker: it delays their next records by so much at most. A fetch of all partitions is held for 500 ms. Any is answered at once when a record comes.", ge=1, le=1500)] = 50
    buffered_batches: Annotated[Count, Meta(description="Batches that may wait in a stream before its partitions are paused (back-pressure).")] = 4
    session_timeout_s: Annotated[float, Meta(description="A worker silent for this long loses its partitions.", ge=1)] = 10.0
    request_timeout_s: Annotated[float, Meta(description="Bound on one request to the broker.", ge=1)] = 30.0
    transaction_timeout_s: Annotated[float, Meta(description="The broker aborts a transaction open for longer.", ge=1)] = 30.0
    transaction_max_bytes: Annotated[int, Meta(description="Bytes of records that one transaction of a worker is to have at most; larger batches are split. Where a transaction takes long or times out, as on a slow link or under a quota, it is halved, down to 1 MB, and doubled again as they become quick.", ge=65_536)] = 50_331_648
    max_record_bytes: Annotated[int, Meta(description="Largest record that is written, with its key and headers; also of one record batch. The brokers' `message.max.bytes` (1,048,588 by default) and the topics' `max.message.bytes` must be a little more. Slates beyond it are cut, dead letters truncated.", ge=65_536)] = 1_000_000
    connect_timeout_s: Annotated[float, Meta(description="How long a worker keeps trying to reach the broker at start before it gives up; 0 tries for ever.", ge=0)] = 0.0

    @property
    def uses_tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.security_protocol.endswith("SSL")

    @property
    def uses_sasl(self) -> bool:
        """Whether a user name and a password are presented."""
        return self.security_protocol.startswith("SASL")


class Action(Section, frozen=True):
    """One kind of engagement."""

    name: Annotated[str, Meta(description="Action's name, as in slates' reasons.", pattern=r"^[a-z][a-z0-9_]{0,31}$")]
    topic: Annotated[str, Meta(description="Topic its events arrive on.", pattern=r"^[A-Za-z0-9._-]{1,200}$")]
    weight: Annotated[float, Meta(description="Signed weight in the interest vector; negative for dislike.", ge=-100, le=100)]


class Events(Section, frozen=True):
    """Decoding and validation of events."""

    actions: Annotated[tuple[Action, ...], Meta(description="Actions; in the environment `name:topic:weight,…`.", min_length=1, max_length=MOST_ACTIONS)] = (
        Action(name="like", topic="likes", weight=1.0),
        Action(name="comment", topic="comments", weight=2.0),
        Action(name="share", topic="shares", weight=3.0),
    )
    extra_actions: Annotated[tuple[Action, ...], Meta(description="Actions beside those of `events.actions`, so that the default ones need not be repeated; one with a name that is there already replaces it. In the environment `name:topic:weight,…`.", max_length=MOST_ACTIONS)] = ()
    max_bytes: Annotated[Count, Meta(description="Largest event in bytes; larger ones get `oversized`.")] = 65_536
    max_id_bytes: Annotated[int, Meta(description="Largest user, content or event id in bytes.", ge=1, le=1024)] = 256
    max_future_s: Annotated[float, Meta(description="How far `occurred_at` may be ahead of the Kafka timestamp, and of the clock of worker and broker. Contents created after stream time by more than this are not recommended yet: a replay must not know its future.", ge=0)] = 300.0
    max_age_days: Annotated[Positive, Meta(description="Events older than this, counted from stream time, get `too_old`.")] = 400.0
    retry_delays_s: Annotated[tuple[Positive, ...], Meta(description="Wait before each try of an event whose content is not known yet, on a topic for each (`events-retry-1`, …), so that none waits for another; after the last one it is dead-lettered.", max_length=16)] = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
    max_redrives: Annotated[int, Meta(description="How often `stream-app dlq redrive` gives the same record a second chance; its next dead letter is refused.", ge=0, le=1000)] = 3


class Interests(Section, frozen=True):
    """The decayed interest state and where it lives."""

    half_life_days: Annotated[Positive, Meta(description="Half-life of an engagement's weight.")] = 7.0
    recent: Annotated[int, Meta(description="Recent interactions kept for each user: the horizon of undo, duplicate recognition and explanations.", ge=1, le=1024)] = 32
    seen: Annotated[int, Meta(description="Content keys kept for each user as already seen.", ge=1, le=65_536)] = 256
    seen_long: Annotated[int, Meta(description="Contents that a user had before those: a fingerprint of 4 bytes is kept of each, up to so many. With all of them, one content in two million that the user never had is taken for seen.", ge=0, le=65_536)] = 2_048
    light_weight: Annotated[float, Meta(description="Actions whose weight is nearer to zero than this are light, as a view is: they do not push others out of what is remembered.", ge=0, le=100)] = 0.5
    kept: Annotated[int, Meta(description="Where some action is light: interactions of others that are remembered after `recent` newer ones have come, for undo and to recognise duplicates.", ge=1, le=1024)] = 32
    min_mass: Annotated[float, Meta(description="Users whose mass has decayed below this are dropped.", ge=0)] = 0.001
    data_dir: Annotated[str, Meta(description="Directory of the RocksDB state; one for each worker.")] = ".stream-app/state"
    slab_rows: Annotated[int, Meta(description="Users of one partition held in memory.", ge=64)] = 50_000
    write_buffer_bytes: Annotated[int, Meta(description="Memory in which RocksDB gathers one partition's writes before it makes a file of them; up to twice as much is used while it does.", ge=65_536)] = 33_554_432
    flush_interval_s: Annotated[Positive, Meta(description="How often changed users are written to RocksDB.")] = 2.0
    expiry_interval_s: Annotated[Positive, Meta(description="How often faded users are looked for.")] = 60.0
    sweep_interval_s: Annotated[Positive, Meta(description="How often copies of erased users' events are removed from the retry topics, `events-routed`, `events-dlq` and the files of the state directory, if there are any. One round rewrites the state of the partitions concerned.")] = 30.0
    fences: Annotated[Count, Meta(description="Most erased users remembered in one partition; beyond it those with the oldest fences are forgotten, and late events of theirs would count again. A fence older than `events.max_age_days` is not needed any more.")] = 1_000_000
    cleanup_delay_s: Annotated[float, Meta(description="Directories of partitions that moved to another worker are removed after this time: until then a partition that comes back finds its state. Erased users are taken out of the directories of partitions that are served, and only of these.", ge=0)] = 600.0
    standby_replicas: Annotated[int, Meta(description="Workers that keep a warm copy of each partition.", ge=0, le=8)] = 0
    stats_half_lives_h: Annotated[tuple[Positive, ...], Meta(description="Half-lives of the content statistics, in hours. The learned ranker needs the default ones; with others the fixed blend ranks.", min_length=1, max_length=8)] = (1 / 12, 1 / 3, 1.0, 4.0, 24.0, 96.0, 336.0, 1440.0)

    def is_light(self, action: Action) -> bool:
        """Whether an action is a passing one."""
        return abs(action.weight) < self.light_weight


class Impressions(Section, frozen=True):
    """What was really shown, where the platform reports it (topic `impressions`, optional)."""

    max_contents: Annotated[int, Meta(description="Most contents in one reported list; longer ones get `oversized`.", ge=1, le=1024)] = 64
    remembered_users: Annotated[Count, Meta(description="Users of whom a ranker and the trainer remember what they were shown; those who were shown nothing for longest are forgotten first. Each takes 20 bytes for each of `remembered_contents`.")] = 50_000
    remembered_contents: Annotated[int, Meta(description="Showings remembered of each user, the newest ones.", ge=1, le=4096)] = 128
    reach_h: Annotated[Positive, Meta(description="An engagement is an answer to having been shown the content at most so many hours before. A worker that starts reads as much of the topic, as far as `max_backlog` allows.")] = 24.0
    max_backlog: Annotated[Count, Meta(description="A worker that is further behind than so many records of `impressions` goes on at their end.")] = 100_000


class Content(Section, frozen=True):
    """Text encoder and content index."""

    model: Annotated[str, Meta(description="Hugging Face id or local path of the encoder; `default` is all-MiniLM-L6-v2 from the installed package. A path begins with `/`, `.` or `~`, or names a directory that is there.")] = "default"
    model_id: Annotated[str, Meta(description="Id that the encoder's vectors are stored under. Empty: `all-MiniLM-L6-v2` for `default`, a Hugging Face id as it is, and a digest of its files for a local path, which roles on machines without these files cannot compute: they are told here. `stream-app models` lists what there is.", pattern=r"^[A-Za-z0-9._:@/+-]{0,200}$")] = ""
    dimensions: Annotated[int, Meta(description="Length of the encoder's vectors.", ge=8, le=4096)] = 384
    device: Annotated[str, Meta(description="`auto`, `cpu`, `cuda` or `cuda:N`.")] = "auto"
    batch_size: Annotated[Count, Meta(description="Texts encoded at a time.")] = 32
    max_tokens: Annotated[int, Meta(description="Texts are cut after this many tokens.", ge=8, le=8192)] = 256
    remembered_texts: Annotated[Count, Meta(description="Texts whose vectors are remembered, so that a content that comes again with the same text is not encoded again.")] = 10_000
    max_bytes: Annotated[Count, Meta(description="Largest content record in bytes.")] = 1_048_576
    capacity: Annotated[Count, Meta(description="Most contents in the index; the oldest are evicted first.")] = 100_000
    former_vectors: Annotated[int, Meta(description="Vectors kept of contents that were deleted, evicted or encoded anew, the oldest are given up first: an engagement can be undone as long as its vector is there.", ge=0)] = 10_000
    former_days: Annotated[Positive, Meta(description="How long the vector of a content that was deleted or encoded anew stays on `content-vectors` for that. Of a deleted content nothing else is kept there.")] = 30.0
    max_age_days: Annotated[Positive, Meta(description="Contents older than this, counted from stream time, are evicted from the index.")] = 730.0


class Arm(Section, frozen=True):
    """A part of the users, and who ranks for them."""

    name: Annotated[str, Meta(description="Arm's name, as in slates and metrics.", pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
    ranker: Annotated[str, Meta(description="`blend` or `learned`.", pattern="^(blend|learned)$")]
    share: Annotated[float, Meta(description="Part of the users; what counts is the ratio of the shares.", gt=0, le=1e6)]


class Ranking(Section, frozen=True):
    """Retrieval, ranker, diversity."""

    device: Annotated[str, Meta(description="`auto`, `cpu`, `cuda` or `cuda:N`.")] = "auto"
    threads: Annotated[int, Meta(description="Processor threads of one ranking on the CPU; 0 takes half of the processors. More than are really free make it many times slower, since they wait for each other.", ge=0, le=1024)] = 0
    batch_users: Annotated[Count, Meta(description="Users ranked at a time.")] = 256
    arms: Annotated[tuple[Arm, ...], Meta(description="A/B arms; in the environment `name:ranker:share,…`. Where there is no learned ranker yet, the blend ranks for its arms too.", min_length=1, max_length=16)] = (
        Arm(name="learned", ranker="learned", share=1.0),
    )
    arms_salt: Annotated[str, Meta(description="Goes into the hash of the user id that says which arm a user is in: another salt draws other users.", max_length=64)] = ""
    candidates: Annotated[Count, Meta(description="Candidates retrieved for each user by interest, recency and popularity (K'). The learned ranker diversifies its best K'.")] = 200
    candidates_popular: Annotated[Count, Meta(description="Learned ranker: so many of the contents engaged with most, at each of four half-lives, and of the newest ones are everybody's candidates.")] = 100
    candidates_near: Annotated[Count, Meta(description="Learned ranker: so many neighbours of each of the user's last eight contents, those with the most common readers, are candidates.")] = 32
    all_up_to: Annotated[int, Meta(description="Learned ranker: with at most so many contents in the index, all of them are candidates.", ge=0)] = 2_000
    slate_size: Annotated[int, Meta(description="Contents in a slate (k).", ge=1, le=1000)] = 10
    max_age_days: Annotated[Positive, Meta(description="Contents older than this, counted from stream time, are not recommended. By default the index alone decides (`content.max_age_days`): rankers know how old a content is, and where old contents are read, a limit hides what is looked for.")] = 730.0
    min_mass: Annotated[float, Meta(description="Users with less mass get the cold-start blend.", ge=0)] = 0.05
    weight_interest: Annotated[float, Meta(description="Blend weight of the cosine of interest and content.")] = 1.0
    weight_recency: Annotated[float, Meta(description="Blend weight of the content's recency.")] = 0.3
    weight_popularity: Annotated[float, Meta(description="Blend weight of the decayed popularity.")] = 0.3
    weight_match: Annotated[float, Meta(description="Blend weight of the best match among recent interactions.")] = 0.2
    recency_half_life_h: Annotated[Positive, Meta(description="Half-life of the recency feature, in hours.")] = 24.0
    popularity_half_life_h: Annotated[Positive, Meta(description="Which statistics half-life popularity is read at: the nearest configured one.")] = 24.0
    diversity: Annotated[float, Meta(description="How much the variety of a slate counts beside its scores (λ of a determinantal point process): 0 is pure score, 1 is pure variety.", ge=0, le=1)] = 0.3
    calibration: Annotated[float, Meta(description="How much it counts that each side of a user (contents like each other, among the recent interactions) has the places that its share of the interests calls for; 0 is off.", ge=0, le=100)] = 0.0
    explore: Annotated[float, Meta(description="Part of a slate's places, the last ones, that are drawn by lot from contents that are new, rising or little noticed, with their propensities in the slate; at least one place if above 0.", ge=0, le=0.5)] = 0.0
    explore_from: Annotated[Count, Meta(description="Contents of each of these three kinds that are drawn from.")] = 50
    explore_span_h: Annotated[Positive, Meta(description="Hours of stream time for which a user's explored contents stay.")] = 1.0
    explore_salt: Annotated[str, Meta(description="Goes into the draw: another salt draws other contents.", max_length=64)] = ""
    author_cap: Annotated[int, Meta(description="Most contents of one author in a slate, as long as there are others; 0 means no cap.", ge=0)] = 3
    own: Annotated[bool, Meta(description="Whether users may be recommended what they wrote themselves: contents whose `author` is the user id.")] = False
    reasons: Annotated[int, Meta(description="Most reasons given for each content.", ge=0, le=16)] = 3
    fatigue: Annotated[float, Meta(description="So much times log(1 + n) is taken from the score of a content that the user was shown n times (`impressions`) and did not engage with. Scores of the learned ranker are logarithms of odds: the odds are multiplied by (1 + n)^-fatigue.", ge=0, le=100)] = 0.3
    fatigue_half_life_h: Annotated[Positive, Meta(description="Half-life of a showing in that count, in hours.")] = 24.0
    refresh_per_s: Annotated[float, Meta(description="Users a second whose slates are made anew though they did nothing, because contents or statistics have changed since; only while no event waits for a slate. 0: nobody's.", ge=0)] = 10.0
    refresh_after_s: Annotated[Positive, Meta(description="How old such a slate must be.")] = 900.0
    refresh_active_h: Annotated[Positive, Meta(description="Users whose last event is longer ago get no new slate before their next one.")] = 24.0
    refresh_users: Annotated[Count, Meta(description="Users whose interest records a ranker keeps for that, 1.5 to 5 kB each; those whose last event is longest ago give way. To reach everybody it takes as many as act within `refresh_after_s`.")] = 20_000
    queue_users: Annotated[Count, Meta(description="Users waiting to be ranked beyond which the cheap fallback list is published. While half as many wait no more records are taken.")] = 20_000


class Learning(Section, frozen=True):
    """The trainer: the ranker that learns from every engagement."""

    publish_interval_s: Annotated[Positive, Meta(description="How often what was learned is published: co-engagement and the state of learning each time, a model for the rankers when it is due and good enough.")] = 30.0
    min_steps: Annotated[Count, Meta(description="Engagements that a model must have been judged by before it is published, or taken back.")] = 200
    shadow_window: Annotated[Count, Meta(description="The models' losses are compared over about so many engagements.")] = 1_000
    margin: Annotated[float, Meta(description="Nats by which a model's mean loss may be above another's without being worse: beyond it the newer one is not published, a published one gives way to the one before it, and after a whole `shadow_window` of that the model that learns begins again as the published one.", ge=0)] = 0.05
    candidates: Annotated[int, Meta(description="Contents that a step compares the chosen one with, at most: the ones most engaged with at each half-life, the newest, neighbours of the user's last contents, and a sample of all others. Where the index has more contents than this, their common features are renewed after every N / `candidates` engagements only.", ge=50)] = 500
    neighbours: Annotated[int, Meta(description="Contents kept for each content as engaged with by the same users (`co-engagement`); takes 20 bytes each, for all of `content.capacity`, in the trainer and in each ranker.", ge=1, le=65_535)] = 128
    published_contents: Annotated[Count, Meta(description="Most contents whose neighbours are published at a time, those first that have changed most; the others wait for the next time.")] = 5_000
    remembered_users: Annotated[Count, Meta(description="Users of whom the trainer remembers how far it has learned; of others only the newest interaction counts.")] = 200_000
    max_backlog: Annotated[Count, Meta(description="A trainer that is further behind than so many records of `interests` goes on at their end: the skipped ones are counted, and never learned from.")] = 50_000


class Recommendations(Section, frozen=True):
    """Publishing of slates."""

    skip_unchanged: Annotated[bool, Meta(description="Publish nothing when a user's slate did not change.")] = True
    remembered_users: Annotated[Count, Meta(description="Users whose last slate is remembered, to notice that and to find those who are shown a content that is deleted. Beyond it nobody is missed, but each deletion has `recommendations` searched.")] = 200_000
    cold_start_interval_s: Annotated[Positive, Meta(description="How often the cold-start slate is renewed.")] = 10.0


class Serving(Section, frozen=True):
    """The HTTP interface that answers with slates (`stream-app worker serve`)."""

    host: Annotated[str, Meta(description="Address it listens on. Anything but loopback needs a token.")] = "127.0.0.1"
    port: Annotated[int, Meta(description="Port of `/v1/…`; 0 takes a free one.", ge=0, le=65_535)] = 8700
    token: Annotated[Secret, Meta(description="What clients present as `Authorization: Bearer …`; empty: everybody is answered. Refused in the TOML file.")] = Secret()
    token_file: Annotated[str, Meta(description="File whose one line is the token, instead of it.")] = ""
    linger_s: Annotated[float, Meta(description="How long a replica that is told to end goes on answering, while `/readyz` says 503 already: for as long as whoever spreads the requests takes to notice.", ge=0, le=20)] = 3.0
    rate_per_s: Annotated[float, Meta(description="Requests a second that a replica answers, to all clients together, with bursts of one second's worth; the others get status 429. 0 means no bound.", ge=0)] = 5_000.0
    queue: Annotated[Count, Meta(description="Searches for similar contents that may wait for each other; the others get status 503.")] = 64


class Inspect(Section, frozen=True):
    """The ranker's page that explains a slate: personal data, for developers and operators."""

    enabled: Annotated[bool, Meta(description="Whether rankers serve `/inspect`. The demo turns it on. They then read `content` whole at start, for its titles (20,000 are kept).")] = False
    host: Annotated[str, Meta(description="Address it listens on. Anything but loopback needs a token.")] = "127.0.0.1"
    port: Annotated[int, Meta(description="Its port; 0 takes a free one.", ge=0, le=65_535)] = 8650
    token: Annotated[Secret, Meta(description="What is asked for: the password that a browser asks for, with any user name, or `Authorization: Bearer …`. Refused in the TOML file.")] = Secret()
    token_file: Annotated[str, Meta(description="File whose one line is the token, instead of it.")] = ""
    users: Annotated[Count, Meta(description="Users whose records and slates a ranker remembers for the page, those ranked last; some 25 kB each. Others are looked up on the topics.")] = 1_000


class Observability(Section, frozen=True):
    """Metrics, health, logs."""

    host: Annotated[str, Meta(description="Address the metrics and health pages listen on.")] = "127.0.0.1"
    port: Annotated[int, Meta(description="Port of `/metrics`, `/healthz`, `/readyz`; 0 takes a free one. `worker all` uses this port and the three after it.", ge=0, le=65_535)] = 8600
    log_level: Annotated[str, Meta(description="`debug`, `info`, `warning` or `error`.", pattern="^(debug|info|warning|error)$")] = "info"
    log_format: Annotated[str, Meta(description="`text`, or `json`: one object a line, with topic, partition and offset of the batch that was being worked on.", pattern="^(text|json)$")] = "text"
    tracing: Annotated[bool, Meta(description="Whether interests workers and rankers make OpenTelemetry spans of events on their way, and hand their context on in the headers of `interests` and `recommendations`. Needs the extra `tracing`.")] = False
    tracing_endpoint: Annotated[str, Meta(description="Where spans are sent: the OTLP/HTTP address of a collector, with its path.", pattern="^https?://")] = "http://127.0.0.1:4318/v1/traces"
    tracing_ratio: Annotated[float, Meta(description="Share of the events without a context of their producer's that begin a trace. With one, the producer has decided.", ge=0, le=1)] = 0.01
    stall_timeout_s: Annotated[Positive, Meta(description="A worker that has input but makes no progress for this long says so on `/healthz` and exits.")] = 120.0


class Settings(Section, frozen=True):
    """The whole configuration."""

    kafka: Kafka = Kafka()
    events: Events = Events()
    interests: Interests = Interests()
    impressions: Impressions = Impressions()
    content: Content = Content()
    learning: Learning = Learning()
    ranking: Ranking = Ranking()
    recommendations: Recommendations = Recommendations()
    serving: Serving = Serving()
    inspect: Inspect = Inspect()
    observability: Observability = Observability()

    def topic_name(self, name: str) -> str:
        """A topic's full name on the broker."""
        return self.kafka.topic_prefix + name

    def group(self, role: str) -> str:
        """Consumer group of a role."""
        return f"{self.kafka.app_id}-{role}"


SECTIONS: dict[str, type[Section]] = {
    "kafka": Kafka,
    "events": Events,
    "interests": Interests,
    "impressions": Impressions,
    "content": Content,
    "learning": Learning,
    "ranking": Ranking,
    "recommendations": Recommendations,
    "serving": Serving,
    "inspect": Inspect,
    "observability": Observability,
}


def load(path: str | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """Read the configuration. Raises ConfigurationError naming setting, value and what is allowed."""
    return build(_gathered(path, environment)[0])


def origins(path: str | None = None, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Where each setting (``section.name``) that is not the default comes from: the file's name, or the
    environment variable's. Raises ConfigurationError as ``load`` does."""
    return _gathered(path, environment)[1]


def _gathered(path: str | None, environment: Mapping[str, str] | None) -> tuple[dict[str, Any], dict[str, str]]:
    """The tree of what is given, and where it comes from."""
    env = os.environ if environment is None else environment
    file = path or env.get(sources.CONFIG)
    tree = sources.from_file(file)
    _refuse_secrets(tree)
    given = {f"{section}.{name}": str(file) for section, fields in tree.items() if isinstance(fields, Mapping) for name in fields}
    for section, name, variable, value in sources.from_environment(env, SECTIONS):
        if isinstance(tree.setdefault(section, {}), dict):
            tree[section][name] = value
            given[f"{section}.{name}"] = variable
    return tree, given


def external_broker(environment: Mapping[str, str] | None = None) -> str | None:
    """The broker that ``STREAM_APP_BROKER`` names, None when tests and demo start their own."""
    env = os.environ if environment is None else environment
    return env.get(f"{ENV_PREFIX}BROKER") or None


def cache_directory(environment: Mapping[str, str] | None = None) -> Path:
    """Where what is fetched once is kept: ``stream-app`` in the user's cache directory."""
    env = os.environ if environment is None else environment
    return Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stream-app"


def build(tree: Mapping[str, Any]) -> Settings:
    """Settings from a tree of sections; the checks that span fields are here."""
    sources.refuse_unknown(tree, SECTIONS)
    try:
        settings = msgspec.convert(dict(tree), Settings, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigurationError(sources.explained(str(error), tree)) from None
    for setting, number in _numbers("", settings):
        if not math.isfinite(number):
            raise ConfigurationError(f"{setting} = {number}: expected a finite number")
    addresses(settings.kafka.broker)
    settings = msgspec.structs.replace(settings, events=_with_extra_actions(settings.events))
    _check_security(settings.kafka)
    _check_exposure("serving", settings.serving)
    _check_exposure("inspect", settings.inspect)
    actions = settings.events.actions
    if len({action.topic for action in actions}) < len(actions):
        raise ConfigurationError("events.actions: each topic must be given once")
    for action in actions:
        if action.topic in OWN_TOPICS or re.search(r"events-(routed|retry(-\d+)?)$", action.topic):
            raise ConfigurationError(
                f"events.actions: topic {action.topic!r} of {action.name!r} is the product's own "
                f"({', '.join(OWN_TOPICS)}, and names that end in events-routed, events-retry or "
                "events-retry-NUMBER); take another"
            )
    if len({arm.name for arm in settings.ranking.arms}) < len(settings.ranking.arms):
        raise ConfigurationError("ranking.arms: each name must be given once")
    if len({action_code(a.name) for a in actions}) < len(actions):
        raise ConfigurationError("events.actions: two names have the same 16-bit code; rename one")
    if settings.interests.seen < settings.interests.recent:
        raise ConfigurationError(
            f"interests.seen = {settings.interests.seen}: must be at least interests.recent "
            f"({settings.interests.recent})"
        )
    if settings.events.max_bytes + COPY_BYTES > settings.kafka.max_record_bytes:
        raise ConfigurationError(
            f"events.max_bytes = {settings.events.max_bytes}: a copy with our headers must fit into "
            f"kafka.max_record_bytes ({settings.kafka.max_record_bytes}); leave {COPY_BYTES} bytes for them"
        )
    if settings.impressions.remembered_contents < settings.impressions.max_contents:
        raise ConfigurationError(
            f"impressions.remembered_contents = {settings.impressions.remembered_contents}: must be at least "
            f"impressions.max_contents ({settings.impressions.max_contents})"
        )
    if settings.ranking.slate_size > settings.ranking.candidates:
        raise ConfigurationError(
            f"ranking.slate_size = {settings.ranking.slate_size}: must be at most "
            f"ranking.candidates ({settings.ranking.candidates})"
        )
    return settings


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Each number in a structure of settings, with its name. msgspec lets NaN pass all bounds."""
    if isinstance(value, float):
        yield name, value
    elif isinstance(value, msgspec.Struct):
        for field in value.__struct_fields__:
            yield from _numbers(f"{name}.{field}".lstrip("."), getattr(value, field))
    elif isinstance(value, tuple):
        for place, item in enumerate(value):
            yield from _numbers(f"{name}[{place}]", item)


def _with_extra_actions(events: Events) -> Events:
    for setting in ("actions", "extra_actions"):
        given = getattr(events, setting)
        if len({action.name for action in given}) < len(given):
            raise ConfigurationError(f"events.{setting}: each name must be given once")
    merged = {action.name: action for action in (*events.actions, *events.extra_actions)}
    if len(merged) > MOST_ACTIONS:
        raise ConfigurationError(f"events.actions and events.extra_actions: {len(merged)} actions, at most {MOST_ACTIONS} are allowed")
    return msgspec.structs.replace(events, actions=tuple(merged.values()))


def _refuse_secrets(tree: Mapping[str, Any]) -> None:
    """Files of settings are shown around, and kept in repositories."""
    for section, kind in SECTIONS.items():
        given = tree.get(section)
        for field in msgspec.structs.fields(kind):
            if isinstance(field.default, Secret) and isinstance(given, Mapping) and field.name in given:
                raise ConfigurationError(
                    f"{section}.{field.name}: not in the configuration file; set "
                    f"{ENV_PREFIX}{section.upper()}_{field.name.upper()}, or name a file that holds it alone in "
                    f"{section}.{field.name}_file"
                )


def _check_security(kafka: Kafka) -> None:
    """What is given of TLS and SASL belongs together, and to the protocol."""
    protocol = f"kafka.security_protocol = {kafka.security_protocol!r}"
    for name in ("ssl_key_password", "sasl_password"):
        if getattr(kafka, name) and getattr(kafka, f"{name}_file"):
            raise ConfigurationError(f"kafka.{name} and kafka.{name}_file are both given; keep one")
    for used, prefix, instead in (
        (kafka.uses_tls, "ssl_", "SSL or SASL_SSL"),
        (kafka.uses_sasl, "sasl_", "SASL_SSL or SASL_PLAINTEXT"),
    ):
        for field in msgspec.structs.fields(Kafka):
            given = getattr(kafka, field.name) != field.default
            if field.name.startswith(prefix) and given and not used:
                raise ConfigurationError(
                    f"kafka.{field.name} is given, but {protocol} makes no use of it; set {instead}"
                )
    if kafka.uses_sasl and not kafka.sasl_username:
        raise ConfigurationError(f"{protocol} needs kafka.sasl_username; set it")
    if kafka.uses_sasl and not (kafka.sasl_password or kafka.sasl_password_file):
        raise ConfigurationError(
            f"{protocol} needs a password; set {ENV_PREFIX}KAFKA_SASL_PASSWORD or kafka.sasl_password_file"
        )
    if bool(kafka.ssl_certificate_file) != bool(kafka.ssl_key_file):
        raise ConfigurationError(
            "kafka.ssl_certificate_file and kafka.ssl_key_file belong together; set both"
        )
    if (kafka.ssl_key_password or kafka.ssl_key_password_file) and not kafka.ssl_key_file:
        raise ConfigurationError("kafka.ssl_key_password is given without kafka.ssl_key_file; set both")


def _check_exposure(name: str, section: Serving | Inspect) -> None:
    """Whoever can reach a page of ours from elsewhere must have its token."""
    if section.token and section.token_file:
        raise ConfigurationError(f"{name}.token and {name}.token_file are both given; keep one")
    if not (is_loopback(section.host) or section.token or section.token_file):
        raise ConfigurationError(
            f"{name}.host = {section.host!r}: other machines can reach that, so it needs a token; set "
            f"{ENV_PREFIX}{name.upper()}_TOKEN or {name}.token_file"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
