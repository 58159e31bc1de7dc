"""What each kind of fault does to the run. Returns when the fault is over; recovery begins there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from stream_app.chaos import disks
from stream_app.chaos.archive import Archive
from stream_app.chaos.crew import Crew, Slot
from stream_app.chaos.feed import Feed
from stream_app.chaos.positions import Positions
from stream_app.chaos.schedule import Fault
from stream_app.chaos.workload import TOPICS
from stream_app.chaos.world import SESSION_TIMEOUT_S, SMALL_SEGMENTS, TINY_SEGMENTS, World
from stream_app.errors import StreamAppError

CONSUMED_TIMEOUT_S = 120.0
POLL_S = 0.1
CUTS = 4
BURST = 400
"""Most events of a burst."""
DAMAGED_FILES = 3
FULL_DISK_S = 3.0
"""A worker that does not write in this time notices nothing."""
CODECS = ("gzip", "snappy", "lz4", "zstd")
ALTERED_S = 1.0
"""A broker answers an alteration before its logs go by it."""
MOST_PARTITIONS = 12
YEAR_2191_MS = 6_974_000_000_000
TIMES_OF_PRODUCERS = {"message.timestamp.type": "CreateTime"}
TIMES_OF_BROKER = {"message.timestamp.type": "LogAppendTime"}
MOST_WORKERS, FEWEST_WORKERS = 4, 1


class Faults:
    """Everything that faults act on."""

    def __init__(
        self,
        world: World,
        crew: Crew,
        feed: Feed,
        positions: Positions,
        archive: Archive,
        add_worker: Callable[[], Slot],
    ) -> None:
        """``add_worker`` starts one more interests worker and returns its slot."""
        self._world, self._crew, self._feed, self._positions = world, crew, feed, positions
        self._archive = archive
        self._add_worker = add_worker
        self._broker = asyncio.Lock()  # one fault at a time does something to it
        self._network = asyncio.Lock()
        self._topics = asyncio.Lock()
        self._members = asyncio.Lock()  # who is among the interests workers
        self.unclean: list[str] = []
        """Workers that were asked to end and did so with another status than 0, although the broker
        could be reached all the while: without it nobody can commit and leave in time."""
        self._outages = 0  # of the broker or the network, so far

    async def run(self, fault: Fault) -> str:
        """Do it; what was hit, in words."""
        act: Callable[[Fault], Awaitable[str]] = getattr(self, f"_{fault.kind}")
        return await act(fault)

    # -- workers

    async def _kill(self, fault: Fault) -> str:
        slot = await self._take(fault)
        try:
            await self._crew.kill(slot)
        finally:
            slot.fault.release()
        return slot.name

    async def _term(self, fault: Fault) -> str:
        slot = await self._take(fault)
        try:
            await self._asked_to_end(slot, self._crew.terminate(slot))
        finally:
            slot.fault.release()
        return slot.name

    async def _zombie(self, fault: Fault) -> str:
        slot = await self._take(fault)
        try:
            self._crew.signal(slot, signal.SIGSTOP)
            await asyncio.sleep(SESSION_TIMEOUT_S + fault.seconds)
            self._crew.signal(slot, signal.SIGCONT)
        finally:
            slot.fault.release()
        return slot.name

    async def _worker_added(self, fault: Fault) -> str:
        async with self._members:
            slot = self._add_worker()
            if len(self._crew.of("interests")) > MOST_WORKERS:
                await self._retire(fault)
        return slot.name

    async def _worker_removed(self, fault: Fault) -> str:
        async with self._members:
            if len(self._crew.of("interests")) <= FEWEST_WORKERS:
                self._add_worker()
            return await self._retire(fault)

    async def _retire(self, fault: Fault) -> str:
        slot = await self._take(fault, "interests")
        try:
            await self._asked_to_end(slot, self._crew.retire(slot))
        finally:
            slot.fault.release()
        return slot.name

    async def _standbys(self, fault: Fault) -> str:
        """One after the other, so that there is always somebody to take over."""
        async with self._members:
            slots = self._crew.of("interests")
            wanted = 0 if slots[0].settings.interests.standby_replicas else 1
            for slot in slots:
                async with slot.fault:
                    slot.configure("interests", standby_replicas=wanted)
                    await self._asked_to_end(slot, self._crew.terminate(slot))
                    await asyncio.sleep(fault.seconds / 2)
            self._crew.standby_replicas = wanted
        return "on" if wanted else "off"

    # -- broker and network

    async def _broker_killed(self, fault: Fault) -> str:
        async with self._broker:
            self._outages += 1
            await asyncio.to_thread(self._world.broker.kill)
            await asyncio.sleep(fault.seconds / 4)
            await asyncio.to_thread(self._world.broker.start)
        return "broker"

    async def _broker_frozen(self, fault: Fault) -> str:
        async with self._broker:
            self._outages += 1
            os.kill(self._world.broker.pid, signal.SIGSTOP)
            await asyncio.sleep(fault.seconds)
            os.kill(self._world.broker.pid, signal.SIGCONT)
        return "broker"

    async def _connections_cut(self, fault: Fault) -> str:
        cut = 0
        async with self._network:
            self._outages += 1
            for turn in range(CUTS):
                cut += await asyncio.to_thread(self._world.proxy.cut, fault.share, fault.number * CUTS + turn)
                await asyncio.sleep(fault.seconds / CUTS)
        return f"{cut} connections"

    async def _network_hung(self, fault: Fault) -> str:
        async with self._network:
            self._outages += 1
            await asyncio.to_thread(self._world.proxy.hang, fault.seconds)
            await asyncio.sleep(fault.seconds)
        return "all connections"

    # -- local state

    async def _state_deleted(self, fault: Fault) -> str:
        slot = await self._take(fault, "interests")
        try:
            async with self._crew.down(slot):
                disks.delete_below(_disk(slot).root)
        finally:
            slot.fault.release()
        return slot.name

    async def _state_damaged(self, fault: Fault) -> str:
        slot = await self._take(fault, "interests")
        try:
            async with self._crew.down(slot):
                files = disks.newest_files(_disk(slot).root, DAMAGED_FILES)
                for path in files:
                    disks.truncate(path, fault.share)
        finally:
            slot.fault.release()
        return f"{slot.name}: {len(files)} files"

    async def _disk_full(self, fault: Fault) -> str:
        slot = await self._take(fault, "interests")
        disk, process = _disk(slot), slot.process
        slot.filled = process
        try:
            disk.fill(process.pid if process is not None else 0)
            for _ in range(int(FULL_DISK_S / POLL_S)):
                if not slot.running or slot.process is not process:
                    break
                await asyncio.sleep(POLL_S)
        finally:
            disk.free(slot.process.pid if slot.running and slot.process is not None else None)
            slot.fault.release()
        return slot.name

    # -- what is sent

    async def _duplicates(self, fault: Fault) -> str:
        count = 1 + int(fault.share * BURST)
        await asyncio.to_thread(self._feed.repeat, count)
        return f"{count} events"

    async def _reordered(self, fault: Fault) -> str:
        count = 1 + int(fault.share * BURST)
        await asyncio.to_thread(self._feed.shuffle, count)
        return f"{count} events"

    async def _topic_recreated(self, fault: Fault) -> str:
        topic = _drawn(TOPICS, fault.place)
        async with self._topics:
            began = asyncio.get_running_loop().time()
            await asyncio.to_thread(self._feed.pause, topic)
            await self._consumed(topic)
            await asyncio.to_thread(self._archive.catch_up, CONSUMED_TIMEOUT_S)
            await asyncio.to_thread(self._world.recreate, topic)
            await asyncio.to_thread(self._feed.resume, topic)
            await asyncio.to_thread(self._feed.burst, int(fault.share * BURST))
            paused = asyncio.get_running_loop().time() - began
        return f"{topic}, paused for {paused:.1f} s"

    async def _consumed(self, topic: str) -> None:
        """Until everything on an event topic is committed."""
        loop = asyncio.get_running_loop()
        since = loop.time()
        while (target := self._positions.target(since)) is None:
            await asyncio.sleep(POLL_S)
            _bounded(since, topic)
        while not self._positions.reached(target, self._world.direct.topic_name(topic)):
            await asyncio.sleep(POLL_S)
            _bounded(since, topic)

    async def _compacted(self, fault: Fault) -> str:
        async with self._topics:
            await asyncio.to_thread(self._world.compact, TINY_SEGMENTS)
            await asyncio.sleep(2 * fault.seconds)
            await asyncio.to_thread(self._world.compact, SMALL_SEGMENTS)
        return "interests, content-stats"

    async def _compressed(self, fault: Fault) -> str:
        topic, codec = _drawn(TOPICS, fault.place), _drawn(CODECS, fault.share)
        async with self._topics:
            await self._altered(
                topic, fault, {"compression.type": codec}, {"compression.type": "producer"}, self._feed.burst
            )
        return f"{topic}: {codec}"

    async def _future_timestamps(self, fault: Fault) -> str:
        topic = _drawn(TOPICS, fault.place)
        async with self._topics:
            await self._altered(
                topic, fault, TIMES_OF_PRODUCERS, TIMES_OF_BROKER, lambda n: self._feed.stamp(n, YEAR_2191_MS)
            )
        return topic

    async def _altered(
        self,
        topic: str,
        fault: Fault,
        config: dict[str, str],
        back: dict[str, str],
        burst: Callable[[int], None],
    ) -> None:
        """A burst while a topic is configured otherwise, and for a while after it."""
        await asyncio.to_thread(self._world.alter, (topic,), config)
        await asyncio.sleep(ALTERED_S)
        await asyncio.to_thread(burst, BURST // 2)
        await asyncio.sleep(fault.seconds)
        await asyncio.to_thread(self._world.alter, (topic,), back)

    async def _wrong_partition(self, fault: Fault) -> str:
        count = 1 + int(fault.share * BURST)
        await asyncio.to_thread(self._feed.misplace, count)
        return f"{count} events"

    async def _topic_grown(self, fault: Fault) -> str:
        topic = _drawn(TOPICS, fault.place)
        async with self._topics:
            count = await asyncio.to_thread(self._world.grow, topic, MOST_PARTITIONS)
            await asyncio.to_thread(self._feed.burst, int(fault.share * BURST))
        return f"{topic}: {count} partitions"

    async def _model_switched(self, fault: Fault) -> str:
        """As the runbook has it: first the content workers, then all workers of each other role at once."""
        async with self._members, contextlib.AsyncExitStack() as stack:
            roles = [self._crew.of(role) for role in ("content", "interests", "ranker")]
            for slot in (slot for slots in roles for slot in slots):
                await stack.enter_async_context(slot.fault)
            model = await asyncio.to_thread(self._world.switch_model)
            for slots in roles:
                async with contextlib.AsyncExitStack() as away:
                    for slot in slots:
                        away.enter_context(self._crew.unwanted(slot))
                    await asyncio.gather(
                        *(self._asked_to_end(slot, self._crew.terminate(slot)) for slot in slots)
                    )
                    for slot in slots:
                        slot.configure("content", model=model)
        return Path(model).name

    async def _offsets_deleted(self, fault: Fault) -> str:
        async with self._members, contextlib.AsyncExitStack() as stack:
            slots = self._crew.of("interests")
            for slot in slots:
                await stack.enter_async_context(slot.fault)
                await stack.enter_async_context(self._crew.down(slot))
            await asyncio.to_thread(self._world.forget_group, "interests")
        return f"{len(slots)} workers"

    # -- targets

    async def _take(self, fault: Fault, role: str | None = None) -> Slot:
        """A worker that no other fault is at, locked; waits until there is one."""
        while True:
            slots = self._crew.of(role or fault.role)
            free = [slot for slot in slots if slot.running and not slot.fault.locked()]
            if free:
                slot = free[int(fault.place * len(free))]
                await slot.fault.acquire()
                return slot
            await asyncio.sleep(POLL_S)

    async def _asked_to_end(self, slot: Slot, ending: Awaitable[int]) -> None:
        outages, cut_off = self._outages, self._broker.locked() or self._network.locked()
        ends_anyway = slot.process is slot.filled  # it may be on its way out for want of a place to write
        status = await ending
        if status == -signal.SIGTERM:  # it had not even begun to be Python: there was nothing to end
            return
        if status and not cut_off and not ends_anyway and outages == self._outages:
            self.unclean.append(f"{slot.name}: {status}")


def _disk(slot: Slot) -> disks.Disk:
    assert slot.disk is not None, "interests workers have one"  # noqa: S101 - for the type checker
    return slot.disk


def _drawn(choices: Sequence[str], place: float) -> str:
    return choices[int(place * len(choices))]


def _bounded(since: float, topic: str) -> None:
    if asyncio.get_running_loop().time() - since > CONSUMED_TIMEOUT_S:
        raise StreamAppError(f"the events on {topic} were not all taken within {CONSUMED_TIMEOUT_S:.0f} s")
