"""One producer for all partitions of a worker, on real Kafka: what goes out together, who may write, and who
loses what when something fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest
from aiokafka.errors import KafkaConnectionError, ProducerFenced

from stream_app.errors import FencedError, TransactionError
from stream_app.kafka import clients
from stream_app.kafka.empty_group import EmptyGroup
from stream_app.kafka.marks import Mark, Membership
from stream_app.kafka.records import Partition
from stream_app.kafka.shared import Share, SharedTransactions
from stream_app.kafka.topic_ids import CommittedOffset
from stream_app.kafka.transactions import Output, Transactions
from stream_app.observability import metrics
from stream_app.settings import Settings
from tests.kafka.offsets import KnownOffsets

pytestmark = pytest.mark.usefixtures("topics", "way")

TOO_LARGE = bytes(3_000_000)
"""A record that no broker takes."""


class Worker:
    """Its partitions are inputs of ``likes`` and ``comments``; the group's offsets are real ones."""

    def __init__(self, settings: Settings, offsets: KnownOffsets | None = None) -> None:
        self.settings = settings
        self.group = EmptyGroup(settings, settings.group("interests"))
        self.writes = [settings.topic_name("interests")]
        known = self.group if offsets is None else offsets
        self.transactions = SharedTransactions(
            settings, settings.group("interests"), "shared", self.writes, lambda: known
        )
        self.inputs = [Partition(settings.topic_name(t), p) for t in ("likes", "comments") for p in (0, 1)]

    def share(self, number: int, earlier: Sequence[str] = ()) -> Share:
        return Share(self.transactions, (self.inputs[number],), tuple(earlier))

    async def claimed(self, *numbers: int) -> list[Share]:
        """Shares of a new assignment."""
        shares = [self.share(number) for number in numbers]
        await self.transactions.assigned(None)
        for share in shares:
            await share.claim()
        return shares

    def output(self, value: bytes, partition: int = 0) -> Output:
        return Output(self.writes[0], partition, b"k", value)

    def commit(
        self, share: Share, offset: int, value: bytes, partition: int = 0, size: int = 0
    ) -> asyncio.Task[dict[Partition, int]]:
        """Ask for one record and an offset to be committed; asked, when this returns to the loop once."""
        outputs = [self.output(value, partition)]
        return asyncio.create_task(share.commit(outputs, {share.inputs[0]: offset}, {}, size))

    @asynccontextmanager
    async def held(self, asked: int) -> AsyncIterator[None]:
        """What is asked for within it waits: so many."""
        async with self.transactions._in_work:
            yield
            await self.waiting(asked)

    async def waiting(self, asked: int) -> None:
        async with asyncio.timeout(30):
            while len(self.transactions._asked) < asked:  # noqa: ASYNC110 - a test's look into it
                await asyncio.sleep(0)

    async def committed(self, number: int) -> CommittedOffset:
        """As the group has it, with the claim."""
        return (await self.group.offsets([self.inputs[number]]))[self.inputs[number]]

    async def owner(self, number: int) -> tuple[int | None, str, bool]:
        found = await self.committed(number)
        mark = found.mark or Mark()
        return found.offset, mark.owner, mark.left

    def values(self) -> list[bytes]:
        return [record.value for record in clients.read_topic(self.settings, self.writes[0])]


def run(steps: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await steps

    asyncio.run(bounded())


def count(result: str = "committed") -> float:
    """Transactions of this process."""
    found: float = metrics.TRANSACTIONS.labels(result)._value.get()
    return found


async def stopped_before_the_commit(worker: Worker, task: asyncio.Task[dict[Partition, int]]) -> None:
    """The worker stands still with everything of its transaction sent."""
    producer = worker.transactions._producer
    assert producer is not None
    reached = asyncio.Event()

    async def never() -> None:
        reached.set()
        await asyncio.Event().wait()

    producer._producer.commit_transaction = never
    await reached.wait()
    assert not task.done()


async def ended(*tasks: asyncio.Task[dict[Partition, int]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


# -- together


def test_what_is_asked_for_meanwhile_goes_out_in_one_transaction(settings: Settings) -> None:
    async def steps() -> None:
        worker = Worker(settings)
        shares = await worker.claimed(0, 1, 2)
        before = count()
        async with worker.held(3):
            asked = [worker.commit(s, 5 + n, b"%d" % n, n % 2) for n, s in enumerate(shares)]
        first, *others = await asyncio.gather(*asked)
        assert count() - before == 1
        topic = worker.writes[0]
        # two records on partition 0, one on 1, each followed by its marker
        assert first == {Partition(topic, 0): 2, Partition(topic, 1): 1}
        assert others == [first, first]
        assert sorted(worker.values()) == [b"0", b"1", b"2"]
        for number in range(3):
            assert await worker.owner(number) == (5 + number, worker.transactions.id, False)
        await worker.transactions.close()

    run(steps())


def test_what_does_not_fit_the_bound_goes_into_the_next_one(settings: Settings) -> None:
    async def steps() -> None:
        worker = Worker(settings)
        shares = await worker.claimed(0, 1, 2, 3)
        worker.transactions.bound.bytes = 1_000
        before = count()
        async with worker.held(4):
            asked = [
                worker.commit(share, 1, b"%d" % n, size=size)
                for n, (share, size) in enumerate(zip(shares, (600, 300, 600, 300), strict=True))
            ]
        ends = [next(iter((await one).values())) for one in asked]
        assert count() - before == 2
        assert ends == [2, 2, 5, 5], "records, a marker, records"
        assert worker.values() == [b"0", b"1", b"2", b"3"]
        # one that is more than the bound goes alone, and goes
        await worker.commit(shares[0], 2, b"large", size=5_000)
        await worker.transactions.close()

    run(steps())


def test_a_transaction_without_offsets_of_its_own_is_refused_once_the_group_has_moved_on(
    settings: Settings,
) -> None:
    async def steps() -> None:
        worker = Worker(settings)
        (share,) = await worker.claimed(0)
        await worker.commit(share, 5, b"one")
        await share.commit([worker.output(b"two")], {}, {})
        assert await worker.owner(0) == (5, worker.transactions.id, False)
        assert worker.transactions._producer is not None
        worker.transactions._producer.member = Membership(7, "who-was-thrown-out")
        with pytest.raises(FencedError):
            await share.commit([worker.output(b"never")], {}, {})
        assert worker.values() == [b"one", b"two"]
        await worker.transactions.close()

    run(steps())


# -- failures


def test_a_transaction_that_fails_loses_those_in_it_and_nobody_else(settings: Settings) -> None:
    async def steps() -> None:
        worker = Worker(settings)
        bad, beside, other = await worker.claimed(0, 1, 2)
        worker.transactions.bound.bytes = 1_000
        former, before = worker.transactions.id, count()
        async with worker.held(3):
            asked = [
                worker.commit(bad, 1, TOO_LARGE, size=300),
                worker.commit(beside, 1, b"beside", size=300),
                worker.commit(other, 1, b"other", size=900),
            ]
        failed, with_it, sound = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(failed, TransactionError)
        assert isinstance(with_it, TransactionError)
        assert not isinstance(sound, BaseException)
        assert worker.transactions.id != former, "a new producer, in place"
        assert worker.values() == [b"other"]
        # asked for while the former producer was there; the next owner has to fence the one that wrote it
        assert await worker.owner(2) == (1, worker.transactions.id, False)
        assert await worker.owner(0) == (0, worker.transactions.id, False)

        # opened anew, they go alone until they have come through
        again = [worker.share(0), worker.share(1)]
        for share in again:
            await share.claim()
        before = count()
        for alone in (3, 1):
            async with worker.held(3):
                asked = [worker.commit(share, 2, b"again") for share in (*again, other)]
            await asyncio.gather(*asked)
            assert count() - before == alone
            before = count()
        await worker.transactions.close()

    run(steps())


def test_one_that_fails_each_time_takes_nobody_with_it(settings: Settings) -> None:
    async def steps() -> None:
        worker = Worker(settings)
        _, other = await worker.claimed(0, 1)
        for attempt in range(3):
            bad = worker.share(0)
            await bad.claim()
            async with worker.held(2):
                asked = [worker.commit(other, 1 + attempt, b"other"), worker.commit(bad, 1, TOO_LARGE)]
            sound, lost = await asyncio.gather(*asked, return_exceptions=True)
            assert isinstance(lost, TransactionError)
            if attempt:
                assert not isinstance(sound, BaseException)
            other = worker.share(1)
            await other.claim()
        assert worker.values() == [b"other", b"other"]
        await worker.transactions.close()

    run(steps())


class Silent(KnownOffsets):
    """A coordinator that takes no claims any more, from a certain moment on."""

    answers = True

    async def claim(self, marks: Mapping[Partition, tuple[int, Mark]], member: Membership | None) -> None:
        if not self.answers:
            raise KafkaConnectionError("no coordinator")
        await super().claim(marks, member)


def test_without_a_new_producer_what_waits_is_a_transaction_that_failed(settings: Settings) -> None:
    async def steps() -> None:
        offsets = Silent(0)
        worker = Worker(settings, offsets)
        bad, other = await worker.claimed(0, 1)
        offsets.answers = False
        worker.transactions.bound.bytes = 1_000
        async with worker.held(2):
            asked = [
                worker.commit(bad, 1, TOO_LARGE, size=600),
                worker.commit(other, 1, b"other", size=600),
            ]
        for lost in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(lost, TransactionError)
        await worker.transactions.close()

    run(steps())


def test_who_does_not_wait_for_the_answer_says_where_it_stands_all_the_same(settings: Settings) -> None:
    async def steps() -> None:
        worker = Worker(settings)
        (share,) = await worker.claimed(0)
        async with worker.held(1):
            asked = worker.commit(share, 5, b"one")
        asked.cancel()
        await asyncio.wait([asked])
        await worker.transactions.release()
        assert await worker.owner(0) == (5, worker.transactions.id, True)
        assert worker.values() == [b"one"]
        await worker.transactions.close()

    run(steps())


# -- owners follow each other


def test_what_a_former_owner_has_open_is_aborted_and_what_it_still_sends_is_refused(
    settings: Settings,
) -> None:
    async def steps() -> None:
        old, new = Worker(settings), Worker(settings)
        share, kept = await old.claimed(0, 1)
        await old.commit(share, 1, b"one")
        task = old.commit(share, 2, b"never")
        await stopped_before_the_commit(old, task)
        (heir,) = await new.claimed(0)
        await new.commit(heir, 2, b"two")
        assert new.values() == [b"one", b"two"]
        assert await new.owner(0) == (2, new.transactions.id, False)
        assert old.transactions._producer is not None
        raw = old.transactions._producer._producer
        with pytest.raises(ProducerFenced):
            await type(raw).commit_transaction(raw)
        await ended(task)
        assert old.transactions._running is not None
        await ended(old.transactions._running)  # type: ignore[arg-type]
        with pytest.raises((FencedError, TransactionError)):
            await old.commit(kept, 9, b"zombie")
        assert new.values() == [b"one", b"two"]
        await asyncio.gather(old.transactions.close(), new.transactions.close())

    run(steps())


def test_an_owner_that_has_left_is_not_fenced(settings: Settings) -> None:
    async def steps() -> None:
        old, new = Worker(settings), Worker(settings)
        gone, kept = await old.claimed(0, 1)
        await old.commit(gone, 1, b"one")
        former = old.transactions.id
        await old.transactions.release()
        assert await old.owner(0) == (1, former, True)
        (heir,) = await new.claimed(0)
        assert new.transactions._fenced == {}
        await new.commit(heir, 2, b"two")
        assert await old.transactions.assigned(None, [kept]) == set()
        await old.commit(kept, 1, b"kept")
        assert old.transactions.id == former, "with the same producer"
        assert await old.owner(1) == (1, former, False)
        assert new.values() == [b"one", b"two", b"kept"]
        await asyncio.gather(old.transactions.close(), new.transactions.close())

    run(steps())


def test_one_former_owner_is_fenced_once_for_all_that_it_had(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    fenced: list[str] = []
    fence_out = Transactions.fence_out

    async def told(self: Transactions, writes: Sequence[str]) -> None:
        fenced.append(self._id)
        await fence_out(self, writes)

    monkeypatch.setattr(Transactions, "fence_out", told)

    async def steps() -> None:
        old, new = Worker(settings), Worker(settings)
        await old.claimed(0, 1)
        await new.transactions.assigned(None)
        await asyncio.gather(*(new.share(n).claim() for n in (0, 1)))
        assert fenced == [old.transactions.id]
        await asyncio.gather(old.transactions.close(), new.transactions.close())

    run(steps())


def test_a_worker_of_an_earlier_version_is_fenced_each_time_it_has_been_the_owner(
    settings: Settings,
) -> None:
    """In a rolling upgrade it uses the same transactional id again."""

    async def steps() -> None:
        new, name = Worker(settings), f"{settings.kafka.app_id}-interests-0"
        for turn in range(2):
            old = Transactions(settings, name, settings.group("interests"))
            await old.fence(new.writes)
            await old.commit([new.output(b"taken")], {new.inputs[0]: (2 * turn + 1, Mark())})
            raw = old._producer
            await raw.begin_transaction()
            await raw.send_and_wait(new.writes[0], b"never", b"k", 0)
            await new.transactions.assigned(None)
            share = new.share(0, [name])
            await share.claim()
            with pytest.raises(ProducerFenced):
                await raw.commit_transaction()
            await new.commit(share, 2 * turn + 2, b"new")
            await new.transactions.release()
            await old.close()
        assert new.values() == [b"taken", b"new"] * 2
        await new.transactions.close()

    run(steps())


def test_ids_of_others_that_stand_where_a_claim_would_are_left_alone(settings: Settings) -> None:
    async def steps() -> None:
        stranger, worker = "payments-1", Worker(settings)
        theirs = Transactions(settings, stranger, settings.group("x"))
        await theirs.begin(worker.writes)
        await worker.group.claim({worker.inputs[0]: (3, Mark("", stranger))}, None)
        (share,) = await worker.claimed(0)
        await worker.commit(share, 4, b"ours")
        await theirs.commit([worker.output(b"theirs")])
        assert worker.values() == [b"ours", b"theirs"]
        await asyncio.gather(worker.transactions.close(), theirs.close())

    run(steps())


# -- between two assignments


def test_between_two_assignments_nothing_is_committed_and_what_waits_goes_out_then(
    settings: Settings,
) -> None:
    async def steps() -> None:
        worker = Worker(settings)
        kept, gone, closed = await worker.claimed(0, 1, 2)
        await worker.transactions.release()
        asked = [worker.commit(share, 1, b"%d" % n) for n, share in enumerate((kept, gone, closed))]
        await worker.waiting(3)
        closed.leave()
        with pytest.raises(FencedError, match="given up"):
            await asked[2]
        with pytest.raises(FencedError, match="given up"):
            await worker.commit(closed, 2, b"later still")
        assert not asked[0].done()
        assert worker.values() == []
        with pytest.raises(TransactionError, match="no assignment"):
            await worker.share(3).claim()
        assert await worker.transactions.assigned(None, [kept]) == set()
        await asked[0]
        with pytest.raises(FencedError, match="given up"):
            await asked[1]  # it is not among those that stay with us
        with pytest.raises(FencedError, match="given up"):
            await worker.commit(gone, 2, b"later still")
        assert worker.values() == [b"0"]
        await worker.transactions.close()

    run(steps())


def test_what_somebody_else_had_in_between_is_strange_and_commits_nothing_more(settings: Settings) -> None:
    async def steps() -> None:
        sleeper, other = Worker(settings), Worker(settings)
        taken, kept = await sleeper.claimed(0, 1)
        await sleeper.transactions.release()
        asked = [sleeper.commit(taken, 1, b"stale"), sleeper.commit(kept, 1, b"kept")]
        await sleeper.waiting(2)
        (heir,) = await other.claimed(0)
        await other.commit(heir, 1, b"heir")
        await other.transactions.release()
        assert await sleeper.transactions.assigned(None, [taken, kept]) == {taken}
        stale, sound = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(stale, FencedError)
        assert not isinstance(sound, BaseException)
        with pytest.raises(FencedError, match="given up"):
            await sleeper.commit(taken, 1, b"stale")
        assert other.values() == [b"heir", b"kept"]
        assert await other.owner(0) == (1, other.transactions.id, True)
        await asyncio.gather(sleeper.transactions.close(), other.transactions.close())

    run(steps())


def test_what_nobody_claims_any_more_is_strange_too(settings: Settings) -> None:
    """A reset by hand leaves an offset without a mark."""

    async def steps() -> None:
        worker = Worker(settings)
        share, kept = await worker.claimed(0, 1)
        await worker.transactions.release()
        await worker.group.claim({worker.inputs[0]: (0, Mark())}, None)
        assert await worker.transactions.assigned(None, [share, kept]) == {share}
        await worker.transactions.close()

    run(steps())


class Unreachable(KnownOffsets):
    """A coordinator that does not answer, at first."""

    away = True

    async def claim(self, marks: object, member: Membership | None) -> None:
        if self.away:
            raise TransactionError("nobody answers")


@pytest.mark.parametrize("begun", [True, False])
def test_an_assignment_that_was_given_up_does_not_begin(settings: Settings, begun: bool) -> None:
    async def steps() -> None:
        offsets = Unreachable(0)
        worker = Worker(settings, offsets)
        offsets.away = False
        (share,) = await worker.claimed(0)
        await worker.transactions.release()
        stale, since = Membership(1, "member"), worker.transactions.releases
        offsets.away = not begun
        if begun:
            await worker.transactions.assigned(stale, [share])
        else:
            offsets.claims = {share.inputs[0]: (0, Mark("", worker.transactions.id))}
            with pytest.raises(TransactionError, match="nobody answers"):
                await worker.transactions.assigned(stale, [share])
            offsets.away = False
        await worker.transactions.release()
        with pytest.raises(FencedError, match="given up before it was begun"):
            await worker.transactions.assigned(stale, [share], since)
        assert not worker.transactions._open.is_set()
        # a follower of the group that joins again is given the same one
        await worker.transactions.assigned(stale, [], worker.transactions.releases)
        assert worker.transactions._open.is_set()
        await worker.transactions.close()

    run(steps())


def test_a_producer_that_was_fenced_is_not_taken_into_the_next_assignment(settings: Settings) -> None:
    async def steps() -> None:
        sleeper, other = Worker(settings), Worker(settings)
        _, kept = await sleeper.claimed(0, 1)
        former = sleeper.transactions.id
        await other.claimed(0)  # which fences the sleeper
        await sleeper.transactions.release()  # it wakes up, and learns it
        assert await sleeper.transactions.assigned(None, [kept]) == set()
        await sleeper.commit(kept, 1, b"kept")
        assert sleeper.transactions.id != former
        assert await sleeper.owner(1) == (1, sleeper.transactions.id, False)
        await asyncio.gather(sleeper.transactions.close(), other.transactions.close())

    run(steps())


def test_what_the_group_has_forgotten_is_not_said_again(settings: Settings) -> None:
    """A topic was deleted and created again: its offsets of before would pass for those of the new one."""

    async def steps() -> None:
        offsets = KnownOffsets(0)
        worker = Worker(settings, offsets)
        await worker.claimed(0)
        assert offsets.claims
        offsets.claims.clear()
        await worker.transactions.release()
        assert not offsets.claims
        await worker.transactions.close()

    run(steps())
