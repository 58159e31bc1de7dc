"""Placing many keys at once: exactly where Kafka's own partitioner puts them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stream_app.kafka.partitions import FEW, partition_of, partitions_of

KEYS = st.lists(st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=40))


@given(KEYS, st.sampled_from([1, 2, 4, 7, 64]))
def test_many_keys_are_placed_as_one_is(texts: list[str], partitions: int) -> None:
    keys = [text.encode() for text in texts] + [b"u%d" % n for n in range(FEW)] + [b"x" * 1024]
    assert partitions_of(keys, partitions).tolist() == [partition_of(key, partitions) for key in keys]


def test_no_key_is_placed_nowhere() -> None:
    assert partitions_of([], 4).tolist() == []
