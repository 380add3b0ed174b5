"""What a head returns, whoever wrote it."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pycls.heads.ops.fused import Ranking


@dataclass
class HeadOutput:
    """What a head returns.

    Attributes:
        logits: [N, K], without margin; None in training with so many classes that they are not kept (see ``chunk``).
        loss: scalar, None without labels.
        terms: the parts of the loss by name, detached scalars that add up to it.
        correct: bool [N], whether the label's logit (of a mixture the first label's) is the largest; where ``logits`` is None.
        ranking: in evaluation, where ``logits`` is None because the classes are sharded over processes.
    """

    logits: Tensor | None
    loss: Tensor | None = None
    terms: dict[str, Tensor] = field(default_factory=dict)
    correct: Tensor | None = None
    ranking: Ranking | None = None


torch.export.register_dataclass(HeadOutput)  # else DDP and FSDP do not find the loss in it


def head_output(head: nn.Module, features: Tensor, labels: Any = None) -> HeadOutput:
    """What a head gives for features [N, D] and labels, as a :class:`HeadOutput`.

    Any module may be a head: without labels it returns logits [N, K], with labels the loss (a scalar), or both as (logits,
    loss); or a HeadOutput itself. A head that returns the loss alone is asked for its logits once more, without gradient.

    Raises:
        TypeError: it returns anything else.
    """
    found = head(features) if labels is None else head(features, labels)
    if isinstance(found, HeadOutput):
        return found
    kind = type(head).__name__
    if labels is None:
        if isinstance(found, Tensor) and found.ndim == 2:
            return HeadOutput(found)
        raise TypeError(f"the head {kind} returns without labels neither logits [N, K] nor a HeadOutput")
    logits = None
    if isinstance(found, tuple) and len(found) == 2:
        logits, found = found
    if not isinstance(found, Tensor) or found.ndim:
        raise TypeError(f"the head {kind} returns with labels neither a loss (a scalar), nor (logits, loss), nor a HeadOutput")
    if logits is None:
        with torch.no_grad():
            logits = head_output(head, features).logits
    return HeadOutput(logits, found, {str(getattr(head, "name", kind)): found.detach()})
