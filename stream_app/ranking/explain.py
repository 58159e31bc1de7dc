"""Why a content is in a slate: which past interactions carry its interest score.

The interest vector is a sum, ``S = Σ_i w_i · 2^(-(t_ref - t_i)/h) · e_i``, so its product with a content
c is one too, and interaction i's *share* of it is exact::

    share_i = w_i · 2^(-(t_ref - t_i)/h) · (e_i · c) / (S · c)

Shares are of the interest part alone, not of the whole score. Those of all interactions ever applied
add up to 1; those still in the record add up to 1 less what older ones carry. A share may exceed 1,
others being negative then (an interaction that speaks against the content). Where S · c ≤ 0 the
interests do not speak for the content, and no reason is given.

See :mod:`stream_app.ranking.device` for the legend.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST_COSINE = 1e-4
"""Below this cosine of S and c the shares would be rounding noise blown up."""


def shares(closeness: Tensor, recent_share: Tensor, interest: Tensor, norms: Tensor) -> Tensor:
    """Share [B, k, R] of each interaction in the interest score of each content of the slate.

    ``closeness`` [B, k, R] = e_i · c, ``recent_share`` [B, R] = w_i · 2^(-(t_ref - t_i)/h), 0 for what is
    not in the sum or not in the index, ``interest`` [B, k] = cosine of S and c, ``norms`` [B] = |S|.
    Zero where the cosine is not positive.
    """
    spoken_for = interest > _LEAST_COSINE
    whole = torch.where(spoken_for, interest * norms.unsqueeze(1), torch.inf)  # [B, k] = S · c
    return closeness * recent_share.unsqueeze(1) / whole.unsqueeze(2)


def top_reasons(shares_: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` largest shares [B, k, r], descending, and their interactions [B, k, r].

    Shares that are not positive are no reasons: the caller stops at the first one.
    """
    top = shares_.topk(min(count, shares_.shape[2]), dim=2)
    return top.values, top.indices
