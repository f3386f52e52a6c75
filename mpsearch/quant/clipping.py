"""Where to clip: the share of a range that leaves the least error, by search.

A coarse sweep from the whole range down, of all ends together and then of each end alone, and a
fine one around the best. The error is no convex function of the range, so nothing less will do.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_COARSE, _FINE = 40, 8
_LEAST = 0.05  # of the range, below which nothing is tried
_STEP = (1 - _LEAST) / (_COARSE - 1)


def clip(error: Callable[[Tensor], Tensor], ends: int, rows: int, like: Tensor) -> Tensor:
    """(ends, rows) shares of the range, in (0, 1], that leave the least error row by row.

    ``error`` maps such shares to (rows,) errors. Of equal ones the widest range is kept, and the
    whole range is among those tried, so that the answer is never worse than not to clip.
    """
    best = torch.ones(ends, rows, device=like.device)
    least = error(best)

    def consider(shares: Tensor) -> None:
        nonlocal best, least
        found = error(shares)
        best = torch.where(found < least, shares, best)
        least = torch.minimum(found, least)

    coarse = [1 - step * _STEP for step in range(_COARSE)]
    fine = [step * _STEP / (_FINE + 1) for step in range(-_FINE, _FINE + 1) if step]
    for share in coarse[1:]:
        consider(torch.full_like(best, share))
    alone = [*range(ends)] * 2 if ends > 1 else []
    for end in alone:
        for share in coarse:
            consider(_with(best, end, torch.full_like(best[end], share)))
    for end in range(ends):
        centre = best[end].clone()
        for step in fine:
            consider(_with(best, end, (centre + step).clamp(_LEAST, 1)))
    return best


def _with(shares: Tensor, end: int, values: Tensor) -> Tensor:
    changed = shares.clone()
    changed[end] = values
    return changed
