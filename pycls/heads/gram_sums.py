"""The sums of a softmax over the classes that are not the target, by torch's operations."""

from typing import NamedTuple

import torch
from torch import Tensor

from pycls.heads.gram_chunk import Places


class Sums(NamedTuple):
    """Of the exponentials of the logits (plus offset) of the classes that are not the target, each [N].

    Attributes:
        top: the largest of these logits.
        total: the sum of the exponentials of these logits less ``top``.
        log_sum: ``top + log(total)``.
    """

    top: Tensor
    total: Tensor
    log_sum: Tensor


def merged(parts: list[Sums], classes: int) -> Sums:
    """Those of the whole from those of its chunks. Without any other class there is nothing to sum: a finite stand-in for
    log 0 keeps the gradients finite."""
    if len(parts) > 1:
        tops, totals = torch.stack([part.top for part in parts]), torch.stack([part.total for part in parts])
        top = tops.amax(dim=0)
        total = totals.mul_((tops - top).exp_()).sum(dim=0)
        return Sums(top, total, total.log().add_(top))
    if classes > 1:
        return parts[0]
    top = parts[0].top.clamp(min=torch.finfo(parts[0].top.dtype).min / 4)
    return Sums(top, torch.ones_like(top), top)


def sums_of(z: Tensor) -> Sums:
    """Of z [N, c], where at most one of a row is -inf. Softmax is one kernel, quicker than exp alone; the largest share tells
    the sum."""
    top = z.amax(dim=1)
    if z.shape[1] == 1:
        return Sums(top, (top > -torch.inf).to(z.dtype), top)
    total = torch.softmax(z, dim=1).amax(dim=1).reciprocal_()
    return Sums(top, total, total.log().add_(top))


def by_sums(
    shifted: Tensor, places: list[Places], sums: list[Sums], by_others: list[Tensor]
) -> Tensor:
    """Sum over the label sets of ``by_others`` [N, 1] times the share ``exp(shifted - top) / total`` [N, c] of each class but
    the set's targets."""
    result = None
    for k, (place, found, by_set) in enumerate(zip(places, sums, by_others, strict=True)):
        old = place.put(shifted, -torch.inf)
        share = (shifted - found.top[:, None]).exp_().mul_(by_set / found.total[:, None])
        result = share if result is None else result.add_(share)
        if k + 1 < len(places):
            place.restore(shifted, old)
    assert result is not None
    return result
