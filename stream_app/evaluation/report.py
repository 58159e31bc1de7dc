"""A comparison as JSON, and as a table for people."""

from __future__ import annotations

from typing import Any

from stream_app.evaluation.compare import Comparison, Figures, Row
from stream_app.evaluation.metrics import AGE, HISTORY, NAMES
from stream_app.evaluation.prequential import FROZEN_AFTER, WARM_UP

OLD = "age:older_than_7_days"


def summary(comparison: Comparison, log_name: str) -> dict[str, Any]:
    """What ``--summary`` writes: the product's last ranker by slice, each with its intervals and the best
    baseline beside it; then all methods. Nothing in it depends on the machine's speed but ``ranked_ms``."""
    log = comparison.log
    scored = log.touch.copy()
    scored[: int(len(log) * WARM_UP)] = False
    found: dict[str, Any] = {
        "log": log_name,
        "seed": comparison.seed,
        "events": len(log),
        "skipped": log.skipped,
        "users": len(log.user_ids),
        "contents": len(log.catalogue),
        "targets": {"any": int(scored.sum()), "strong": int((scored & log.strong).sum())},
    }
    subject = ranker(comparison)
    if subject is not None:
        found["ranker"] = subject.name
        found |= {name: _beside(comparison, subject, name) for name in ("any", "strong")}
        found["older_than_7_days"] = _beside(comparison, subject, OLD)
        found["by_history"] = {n: _beside(comparison, subject, f"history:{n}") for n in HISTORY}
        found["by_age"] = {n: _beside(comparison, subject, f"age:{n}") for n in AGE}
        found["online_against_frozen"] = _frozen(subject)
    found["methods"] = {row.name: _method(row) for row in comparison.rows}
    found["ranked_ms"] = {name: round(ms, 3) for name, ms in comparison.ranked_ms.items()}
    return found


def ranker(comparison: Comparison) -> Row | None:
    """The product's ranker that was run last."""
    return next((row for row in reversed(comparison.rows) if row.product), None)


def _beside(comparison: Comparison, subject: Row, slice_: str) -> dict[str, Any] | None:
    """A slice of the subject's, with the best baseline; None without targets."""
    if slice_ not in subject.slices:
        return None
    found = _plain(subject.slices[slice_])
    for name, personal in (("best_baseline", True), ("best_impersonal", False)):
        best = comparison.best_baseline(slice_, personal=personal)
        if best is not None:
            less = comparison.difference(subject.name, best.name, slice_)
            found[name] = {
                "name": best.name,
                **_plain(best.slices[slice_]),
                "gain": {metric: _rounded(values) for metric, values in less.items()},
            }
    return found


def _plain(figures: Figures) -> dict[str, Any]:
    means = {name: round(mean, 4) for name, mean in figures.means.items()}
    return {
        **means,
        "targets": figures.targets,
        "intervals": {name: _rounded(interval) for name, interval in figures.intervals.items()},
    }


def _frozen(row: Row) -> dict[str, Any] | None:
    if row.online is None or row.frozen is None or row.online_gain is None:
        return None
    return {
        "after": FROZEN_AFTER,
        "online": _plain(row.online),
        "frozen": _plain(row.frozen),
        "gain": {NAMES[0]: _rounded(row.online_gain)},
    }


def _method(row: Row) -> dict[str, Any]:
    return {
        "parameters": row.parameters,
        "slices": {name: _plain(figures) for name, figures in row.slices.items()},
        "coverage": round(row.coverage, 4),
        "novelty_bits": round(row.novelty_bits, 4),
        "intra_list_diversity": None if row.diversity is None else round(row.diversity, 4),
        "online_against_frozen": _frozen(row),
    }


def _rounded(values: tuple[float, ...]) -> list[float]:
    return [round(value, 4) for value in values]


# -- for people

COLUMNS = (
    ("any", "any"),
    ("strong", "strong"),
    (OLD, "> 7 days"),
    *((f"history:{name}", f"hist. {name}") for name in HISTORY),
)


def table(comparison: Comparison) -> str:
    """Markdown: NDCG@10 by slice, with what else there is to say of each method."""
    heads = ["NDCG@10", *(head for _, head in COLUMNS), "95 % (any)", "hit", "MRR"]
    heads += ["coverage", "novelty", "diversity", "last 20 %: online", "frozen", "ms"]
    lines = [_line(heads), _line(["---"] * len(heads))]
    for row in comparison.rows:
        overall = row.slices["any"]
        low, high = overall.intervals["ndcg@10"]
        cells = [row.name, *(_ndcg(row.slices.get(name)) for name, _ in COLUMNS)]
        cells += [
            f"{low:.3f} to {high:.3f}",
            f"{overall.means['hit@10']:.3f}",
            f"{overall.means['mrr@10']:.3f}",
        ]
        cells += [f"{row.coverage:.2f}", f"{row.novelty_bits:.1f}"]
        cells += [
            "-" if row.diversity is None else f"{row.diversity:.2f}",
            _ndcg(row.online),
            _ndcg(row.frozen),
        ]
        cells += [f"{comparison.ranked_ms[row.name]:.2f}"]
        lines.append(_line(cells))
    return "\n".join(lines)


def verdict(comparison: Comparison) -> str:
    """What the product's ranker gains over the best baselines, a line a slice, and over the product's
    other rankers; empty without a ranker."""
    subject = ranker(comparison)
    lines = []
    for name, head in COLUMNS:
        if subject is None or name not in subject.slices:
            continue
        for personal, kind in ((True, "the best baseline"), (False, "the best that knows no person")):
            best = comparison.best_baseline(name, personal=personal)
            if best is not None:
                mean, low, high = comparison.difference(subject.name, best.name, name)["ndcg@10"]
                lines.append(
                    f"{subject.name}, {head}: {mean:+.4f} NDCG@10 ({low:+.4f} to {high:+.4f}) "
                    f"against {kind}, {best.name}"
                )
    for other in (row for row in comparison.rows if row.product and row is not subject):
        if subject is not None:
            mean, low, high = comparison.difference(subject.name, other.name, "any")["ndcg@10"]
            lines.append(
                f"{subject.name}: {mean:+.4f} NDCG@10 ({low:+.4f} to {high:+.4f}) against {other.name}"
            )
    return "\n".join(lines)


def _ndcg(figures: Figures | None) -> str:
    return "-" if figures is None else f"{figures.means['ndcg@10']:.3f}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
