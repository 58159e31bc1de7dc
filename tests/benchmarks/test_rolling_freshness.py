"""Freshness in stretches of a rolling restart, and its verdict."""

from __future__ import annotations

import pytest

from benchmarks.rolling_freshness import (
    Figures,
    Seen,
    Step,
    Stretch,
    answers,
    by_role,
    figures,
    freshness,
    problems,
    steady,
    table,
)


def seen(offset: int, received: float, took: float) -> Seen:
    return Seen(("likes", 0, offset), received, received + took)


def step(name: str, began: float, ended: float, status: int = 0) -> Step:
    return Step(
        name=name,
        role=name.partition("-")[0],
        surge=False,
        stop_s=1.0,
        ready_s=2.0,
        status=status,
        stretch=Stretch(began, ended),
    )


def test_figures_are_quantiles_in_milliseconds() -> None:
    assert figures([n / 1000 for n in range(101)]) == Figures(101, 50.0, 99.0, 100.0)
    assert figures([]) == Figures(0)


def test_a_slate_made_anew_does_not_count_with_the_age_of_its_event() -> None:
    assert answers([seen(1, 10.0, 0.1), seen(1, 10.0, 60.0), seen(2, 11.0, 0.2)]) == [
        seen(1, 10.0, 0.1),
        seen(2, 11.0, 0.2),
    ]


def test_events_that_wait_on_purpose_are_left_out() -> None:
    assert answers([seen(1, 10.0, 4.0), seen(2, 11.0, 0.2)], {("likes", 0, 1)}) == [seen(2, 11.0, 0.2)]


@pytest.mark.parametrize(
    ("received", "took", "counts"),
    [
        (9.0, 0.5, False),  # over before
        (9.9, 0.5, True),  # was under way when it began
        (9.0, 20.0, True),  # arrived before, its slate came after
        (15.0, 0.1, True),
        (19.9, 5.0, True),  # held up by it, answered afterwards
        (20.5, 0.1, False),
    ],
)
def test_an_event_belongs_to_each_stretch_in_which_it_was_under_way(
    received: float, took: float, counts: bool
) -> None:
    assert freshness([seen(1, received, took)], [Stretch(10.0, 20.0)]).count == counts


def test_roles_take_the_stretches_of_all_their_workers() -> None:
    slates = [seen(n, float(n), 0.1 * n) for n in range(1, 40)]
    steps = [step("interests-2", 0.0, 5.5), step("interests-1", 10.0, 10.5), step("ranker-1", 30.0, 31.5)]
    found = by_role(slates, steps)
    assert list(found) == ["interests", "ranker"]
    # those that arrived until 5.5, those that were under way at 10: 10 itself and 9.9 from nobody else
    assert found["interests"].count == len([1, 2, 3, 4, 5, 10])
    assert found["ranker"].max_ms == pytest.approx(3100.0)


@pytest.mark.parametrize(("earlier", "later", "still"), [(100.0, 90.0, True), (400.0, 100.0, False)])
def test_freshness_is_steady_once_it_stops_to_fall(earlier: float, later: float, still: bool) -> None:
    assert steady(Figures(1, earlier, 0.0, 0.0), Figures(1, later, 0.0, 0.0)) == still
    assert not steady(Figures(0), Figures(1, later, 0.0, 0.0))


def test_nothing_is_wrong_with_a_good_one() -> None:
    assert problems({}, 100, 100, [step("serve-1", 0, 1)], {}) == []


@pytest.mark.parametrize(
    ("wrong", "inputs", "status", "failures", "says"),
    [
        ({"lost": 1}, 100, 0, {}, "1 lost"),
        ({"slates_wrong": 2}, 100, 0, {}, "2 slates wrong"),
        ({}, 99, 0, {}, "100 events were acknowledged, 99 were found on the topics"),
        ({}, 100, 1, {}, "serve-1 ended with status 1 after SIGTERM"),
        ({}, 100, 0, {"ranker": 1}, "1 times a ranker worker failed by itself"),
    ],
)
def test_what_is_wrong_is_said(
    wrong: dict[str, int], inputs: int, status: int, failures: dict[str, int], says: str
) -> None:
    assert problems(wrong, 100, inputs, [step("serve-1", 0, 1, status)], failures) == [says]


def test_the_table_has_a_row_for_each_stretch_and_worker() -> None:
    text = table(
        {"without restarts": Figures(3, 1.0, 2.0, 3000.0), "serve": Figures(0)}, [step("serve-1", 0, 1)]
    )
    assert "| without restarts | 3 | 1 | 2 | 3,000 |" in text
    assert "| serve | 0 | – | – | – |" in text
    assert "| serve-1 | in its place | 1.0 | 2.0 | 1.0 | 0 | – | – | – |" in text
