"""Retrieval and shares against their definitions written out in NumPy."""

from __future__ import annotations

import os

import numpy as np
import pytest
import ranking_world as world
import torch

from stream_app.errors import ConfigurationError
from stream_app.ranking.device import DeviceIndex, choose_device, failure_cause, limit_threads
from stream_app.ranking.explain import shares, top_reasons
from stream_app.ranking.popularity import ContentStatistics
from stream_app.ranking.retrieve import priors, retrieve
from stream_app.ranking.texts import SameTexts


@pytest.mark.parametrize(("contents", "count"), [(7, 5), (50, 50), (3000, 20), (3001, 20), (2047, 3)])
def test_retrieval_is_exact(contents: int, count: int) -> None:
    config = world.settings()
    index = world.filled_index(config, contents)
    mirror = DeviceIndex(index, torch.device("cpu"))
    mirror.refresh()
    mirror.copy()
    rng = np.random.default_rng(5)
    users = rng.normal(size=(9, world.D)).astype(np.float32)
    bias = rng.normal(size=contents).astype(np.float32) * 0.3
    bias[::7] = -np.inf
    seen_users, seen_rows = rng.integers(9, size=40), rng.integers(contents, size=40)
    expected = users @ index.vectors[:contents].T * 0.8 + bias
    expected[seen_users, seen_rows] = -np.inf
    found = retrieve(
        mirror,
        torch.from_numpy(users),
        torch.from_numpy(bias),
        torch.from_numpy(seen_users),
        torch.from_numpy(seen_rows),
        0.8,
        count,
    )
    for u in range(9):
        best = np.argsort(-expected[u])[:count]
        best = best[expected[u, best] > -np.inf]
        assert set(found.rows[u][found.valid[u]].tolist()) == set(best.tolist())
    keys = mirror.keys[found.rows]
    assert bool((keys[:, 1:] >= keys[:, :-1]).all())
    assert found.vectors.numpy() == pytest.approx(index.vectors[found.rows.numpy()])


def test_priors_fade_and_mask() -> None:
    config = world.settings(
        ranking={"max_age_days": 10.0, "recency_half_life_h": 24.0}, events={"max_future_s": 60.0}
    )
    index = world.filled_index(config, 0)
    for i, age in enumerate((-60_000, 0, world.DAY, 9 * world.DAY, 11 * world.DAY, -60_001, 0)):
        world.put(index, world.content_id(i), np.ones(world.D), world.NOW - age)
    index.delete(world.content_id(6))
    found = priors(config, index, ContentStatistics(config, index), SameTexts(index), world.NOW)
    assert found.recency[:5] == pytest.approx([1, 1, 0.5, 2**-9, 2**-11], rel=1e-5)
    assert found.bias[:4] == pytest.approx(0.3 * found.recency[:4], abs=2e-6)
    assert np.isneginf(found.bias[4:]).all()


def test_mirror_follows_the_index() -> None:
    config = world.settings()
    index = world.filled_index(config, 20)
    mirror = DeviceIndex(index, torch.device("cpu"))
    assert len(mirror.refresh()) == 20
    mirror.copy()
    assert len(mirror.refresh()) == 0
    rng = np.random.default_rng(3)
    for round_ in range(30):
        for _ in range(int(rng.integers(1, 6))):
            id_ = world.content_id(int(rng.integers(40)))
            if rng.random() < 0.4:
                index.delete(id_)
            else:
                world.put(index, id_, rng.normal(size=world.D), world.NOW + round_, f"a{rng.integers(4)}")
        mirror.refresh()
        mirror.copy()
        high = index.high
        assert mirror.ids == index.ids[: index.high]
        assert mirror.vectors[:high].numpy() == pytest.approx(index.vectors[:high])
        assert (mirror.keys[:high].numpy().view(np.uint64) == index.keys[:high]).all()
        assert (mirror.authors[:high].numpy().view(np.uint64) == index.authors[:high]).all()
        live = index.keys[:high][index.live[:high]]
        asked = np.concatenate([live, rng.integers(2**63, size=5).astype(np.uint64)])
        assert mirror.rows_of(asked).tolist() == [*np.flatnonzero(index.live[:high]).tolist(), *[-1] * 5]


def test_shares_are_parts_of_the_product() -> None:
    rng = np.random.default_rng(2)
    e, weight, c = rng.normal(size=(5, 8)), rng.normal(size=5), rng.normal(size=(3, 8))
    s = weight @ e
    norm = np.linalg.norm(s)
    found = shares(
        torch.tensor(e @ c.T).T[None],
        torch.tensor(weight)[None],
        torch.tensor(c @ s / norm)[None],
        torch.tensor([norm]),
    )[0]
    for i in range(3):
        whole = c[i] @ s
        expected = weight * (e @ c[i]) / whole if whole > 0 else np.zeros(5)
        assert found[i].numpy() == pytest.approx(expected)
    values, slots = top_reasons(found[None], 9)
    assert values.shape == slots.shape == (1, 3, 5)
    assert bool((values[..., 1:] <= values[..., :-1]).all())


def test_devices_are_named_when_they_are_not_there() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("cuda:99", "abacus", "meta"):
        with pytest.raises(ConfigurationError, match=rf"ranking.device = '{name}'"):
            choose_device(name)


def test_torch_leaves_processors_to_others() -> None:
    before = torch.get_num_threads()
    try:
        limit_threads(0)
        half = torch.get_num_threads()
        assert 1 <= half <= max(1, (os.cpu_count() or 1) // 2)
        limit_threads(0)
        assert torch.get_num_threads() == half
        limit_threads(3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_device_faults_are_told_from_faults_in_the_code() -> None:
    assert failure_cause(torch.OutOfMemoryError("CUDA out of memory")) == "out_of_memory"
    assert failure_cause(RuntimeError("CUDA error: an illegal memory access was encountered")) == "device"
    assert failure_cause(RuntimeError("mat1 and mat2 shapes cannot be multiplied (1x3 and 4x5)")) is None
