"""Slates that do not repeat themselves, and show every side of a user: one greedy pass.

*Repetition* is kept out by a determinantal point process: the logarithm of the volume that the slate's
vectors span counts beside their scores. A content that a few others above it make up between them adds next
to no volume, a twin none. Places are filled one by one, each with what adds most (Chen, Zhang and Zhou 2018,
"Fast greedy MAP inference for determinantal point process to improve recommendation diversity").

*Balance* is calibration (Steck 2018, "Calibrated recommendations"): the parts of the slate that belong to
each side of the user shall be those of the user's interests. See :mod:`stream_app.ranking.device` for the
legend; S sides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stream_app.ranking.device import on_grid, products
from stream_app.ranking.sides import Sides

LEAST_VOLUME = 2.0**-10
"""Squared distances from what the slate spans are not told apart below this: vectors are half precision."""
SMOOTHING = 0.1
"""α: so much of every slate is taken to be as the user's interests are, so that a side without a place has a
finite price. With 0.01 the same balance cost a little more (docs/QUALITY.md)."""


def diversify(
    scores: Tensor,
    valid: Tensor,
    vectors: Tensor,
    authors: Tensor,
    places: int,
    diversity: float,
    cap: int,
    sides: Sides | None = None,
    calibration: float = 0.0,
) -> Tensor:
    """Positions [B, places] of the chosen candidates in slate order, -1 where none is left.

    Each place takes the candidate with the largest
    ``(1 - λ) · (score + calibration · balance) + λ · log d²``: λ is ``diversity``, :func:`balance` is that of
    the candidate's side (none without ``sides``), and d is how far the candidate's vector, a unit vector, is
    from the space that those above it span. What has no vector (zero) is like nothing. At most ``cap``
    contents of one author, 0 = no cap, as long as there are others; unknown authors (0) are never capped.
    Equal values go to the candidate that comes first; all terms are on the grid, so that the last bits of a
    product do not decide.

    ``scores``, ``valid``, ``authors`` [B, K], ``vectors`` [B, K, D].
    """
    b, k = scores.shape
    merit = (on_grid(scores) * (1.0 - diversity)).masked_fill_(~valid, -torch.inf)  # of what may yet be taken
    volume = torch.ones_like(scores)  # [B, K], d²
    along: list[
        Tensor
    ] = []  # [B, K] each, the candidates' coordinates in an orthonormal basis of those above
    by_side = torch.zeros_like(sides.shares) if sides else None  # [B, S]: places of the slate so far
    known = authors != 0
    written: list[Tensor] = []  # [B, 1] each, authors of the slate so far
    chosen, values = [], []  # [B, 1] each
    first = torch.arange(b, device=scores.device).unsqueeze(1) * k  # [B, 1], of each user's vectors
    for place in range(min(places, k)):
        value = merit
        if diversity:
            value = value + diversity * on_grid(volume.clamp(min=LEAST_VOLUME).log_())
        if sides is not None and by_side is not None:
            gain = on_grid(calibration * balance(sides.shares, by_side, place + 1))  # [B, S]
            value = value + (1.0 - diversity) * gain.gather(1, sides.of)
        if cap and place >= cap:
            # closed: of an author who has as many places as may be, while there are others
            by_author = (authors.unsqueeze(1) == torch.stack(written, dim=1)).sum(dim=1)  # [B, K]
            capped = known & (by_author >= cap)
            closed = value.masked_fill(capped, -torch.inf)
            others = (closed > -torch.inf).any(dim=1, keepdim=True)
            value = torch.where(others, closed, value)
        most, best = value.max(dim=1, keepdim=True)  # [B, 1], the first of equals
        chosen.append(best)
        values.append(most)
        if place + 1 == places:
            break
        merit = merit.scatter(1, best, -torch.inf)
        if sides is not None and by_side is not None:
            own = sides.of.gather(1, best)
            by_side.scatter_add_(1, own, torch.ones_like(most))
        if cap:
            written.append(authors.gather(1, best))
        if diversity:
            vector = vectors.flatten(0, 1).index_select(0, (first + best).flatten())
            step = on_grid(products(vector, vectors))  # [B, K], cosines
            for one in along:
                step = step - one.gather(1, best) * one
            step = step / volume.gather(1, best).clamp(min=LEAST_VOLUME).sqrt()
            along.append(step)
            volume = volume - step.square()
    slate = torch.full((b, places), -1, dtype=torch.int64, device=scores.device)
    if chosen:
        found = torch.cat(chosen, dim=1)
        slate[:, : len(chosen)] = torch.where(torch.cat(values, dim=1) > -torch.inf, found, -1)
    return slate


def balance(shares: Tensor, by_side: Tensor, places: int) -> Tensor:
    """What a content of each side does for the balance of a slate that then has ``places``, [B, S].

    It is how much smaller ``places · KL(p ‖ q)`` is than with a content of no side: p = ``shares`` [B, S],
    and q = (1 - α) · the sides' parts of the slate + α · p. ``by_side`` [B, S] are the places so far. The
    divergence is a mean over places where scores are a sum over them, hence the factor.
    """
    without = (1.0 - SMOOTHING) / places * by_side + SMOOTHING * shares
    one_more = without + (1.0 - SMOOTHING) / places
    tiny = torch.finfo(shares.dtype).tiny  # a side that a user does not have gains nothing: p = 0
    return places * shares * (one_more / without.clamp(min=tiny)).log()
