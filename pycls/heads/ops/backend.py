"""What stands between the matrix products of the pass over the prototypes: the interface, and which implementation is taken.

Three implementations: torch's operations (``torch_backend.py``, the reference, which can do everything), compiled C on a
processor (``cpu_backend.py``) and Triton's kernels on CUDA (``triton_backend.py``, experimental). The compiled ones have each
row's transform, softmax and sums while it is in the cache; torch's operations each go over all [N, K] numbers.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pycls.heads.ops.derived_weight import Prototypes
from pycls.heads.ops.spec import ScoreSpec


class SoftmaxStats(NamedTuple):
    """Of the logits (plus offset) of the classes that are not the target, each [N].

    Attributes:
        max: the largest of them.
        sum_exp: the sum of the exponentials of these logits less ``max``.
        logsumexp: ``max + log(sum_exp)``.
    """

    max: Tensor
    sum_exp: Tensor
    logsumexp: Tensor


@dataclass
class Operands:
    """What a pass multiplies with the prototypes, and what it adds.

    Attributes:
        x: [N, D], the features as they are multiplied: normalised, if ``norm_factor`` is given and they are float32. In half
            precision if the products are, as are the prototypes; all else is float32 then.
        spec: the similarity.
        scale: 0-dim, of the logit transform, or None.
        row: [N, 1], added to a sample's scores: a distance's share that depends on x alone; or None.
        norm_factor: [N, 1], target norm / |x| of normalised features; or None. In half precision the products are multiplied
            with it instead of x.
        inverse_norms: [K * centers], 1 / |w| of the prototypes where they count as unit vectors; or None.
        center_index: uint8 [N, K], which of its centres gives a class's score; or None for one centre a class.
    """

    x: Tensor
    spec: ScoreSpec
    scale: Tensor | None
    row: Tensor | None
    norm_factor: Tensor | None
    inverse_norms: Tensor | None
    center_index: Tensor | None


class Chunk:
    """The classes from ``low`` on: their prototypes as they are multiplied, and their slices of what all classes have."""

    def __init__(self, low: int, prototypes: Prototypes, operands: Operands) -> None:
        self.low, self.operands, self.spec = low, operands, operands.spec
        self.rows, self.bias = prototypes.rows, prototypes.bias
        centers = self.spec.num_centers
        first, end = low * centers, low * centers + self.rows.size(0)
        self.high = end // centers
        self.inverse_norms = None if operands.inverse_norms is None else operands.inverse_norms[first:end]
        self.center_index = None if operands.center_index is None else operands.center_index[:, low : self.high]

    def slice(self, values: Tensor | None) -> Tensor | None:
        """Of a vector [K] what belongs to these classes."""
        return None if values is None else values[self.low : self.high]


class ScoreGrads(NamedTuple):
    """Gradients by what the forward pass gave, of all classes; None for 0. L label sets.

    Attributes:
        others: L times [N], by the log-sum-exps.
        scores: L times [N], by the targets' scores; or empty.
        total: [N], by the weighted sum of the logits.
        total_weights: [K], of that sum.
        logits: [N, K].
    """

    others: list[Tensor]
    scores: list[Tensor]
    total: Tensor | None
    total_weights: Tensor | None
    logits: Tensor | None


@dataclass
class Gradients:
    """What the backward pass of a chunk of c classes fills or, of what all chunks have, adds to. None for what is not wanted.

    Attributes:
        x: [N, D], by ``Operands.x``; the first chunk sets it.
        weight: [c * centers, D].
        bias: [c].
        scale: 0-dim, by the transform's scale, times it.
        along_x: [N, 1], the sums over the classes of what depends on |x|: of the gradient by the scores, for cosines times
            the score.
    """

    x: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    scale: Tensor | None
    along_x: Tensor | None


class Backend(Protocol):
    """Two calls with the same arguments give the same bits."""

    name: str

    def normalize(self, x: Tensor, target_norm: Tensor | float) -> tuple[Tensor, Tensor]:
        """Features [N, D] of that norm, and their factor [N, 1]; a zero row stays. In half precision x as it is."""

    def normalize_backward_(
        self, grad: Tensor, x: Tensor, factor: Tensor, along: Tensor, target_norm: Tensor | float
    ) -> None:
        """In ``grad``, from the gradient by what :meth:`normalize` gave to that by the features; ``along`` [N, 1] are the sums
        of gradient times x (``Gradients.along_x``)."""

    def squares(self, rows: Tensor, constant: float, rate: float) -> Tensor:
        """``constant + rate |v|^2`` of each row, [N, 1]."""

    def add_rows_(self, out: Tensor, rows: Tensor, factor: float, per_row: Tensor) -> None:
        """``out += factor per_row rows`` with ``per_row`` [N, 1]."""

    def target_squares(self, weight: Tensor, target: Tensor) -> Tensor:
        """|w|^2 [N] of the targets' prototypes, any one for -1."""

    def add_target_squares_grad_(self, grad: Tensor, weight: Tensor, target: Tensor, by_square: Tensor) -> None:
        """Adds the gradient by those squares, [N], to that by all prototypes."""

    def forward(
        self, chunk: Chunk, z: Tensor, targets: list[Tensor], offset: Tensor | None, scores: list[Tensor], reduce: bool,
        max_other: Tensor | None, keep: bool,
    ) -> list[SoftmaxStats]:  # fmt: skip
        """Logits of a chunk and what a softmax needs of them.

        Args:
            chunk: the classes; their ``inverse_norms`` and ``center_index`` are written.
            z: [N, c], rows adjacent within; the logits are written to it if they are to be kept, else it is scratch memory.
            targets: L times int64 [N], of all classes; one that is not among these is left alone.
            offset: [K], added to the logits inside the statistics.
            scores: L times [N]; the scores of those targets that are among these classes are written to it.
            reduce: whether the statistics are wanted.
            max_other: [N], for the largest logit (without offset) that is not the first target's; or None.
            keep: whether the logits are read again.

        Returns:
            The statistics of these classes, of each label set; empty unless ``reduce``.
        """

    def backward(
        self, chunk: Chunk, z: Tensor, targets: list[Tensor], offset: Tensor | None, stats: list[SoftmaxStats],
        by: ScoreGrads, grads: Gradients, recompute: bool,
    ) -> None:  # fmt: skip
        """A chunk's share of all gradients.

        Args:
            chunk: the classes.
            z: their logits [N, c], or scratch memory if they are to be recomputed.
            targets: as in :meth:`forward`.
            offset: as in :meth:`forward`.
            stats: of all classes.
            by: gradients by the results.
            grads: what is wanted.
            recompute: whether the logits were not kept.
        """


class Choice(NamedTuple):
    """A backend, and why it was chosen: a few words for the log."""

    backend: Backend
    reason: str


def select(
    spec: ScoreSpec, targets: list[Tensor], bias: Tensor | None, x: Tensor, rows: Tensor, *others: Tensor | None
) -> Choice:
    """The quickest backend that can do this.

    Args:
        spec: the similarity.
        targets: L times int64 [N].
        bias: [K], added to the scores.
        x: features as they are multiplied.
        rows: prototypes as they are multiplied.
        others: further vectors of the pass.
    """
    from pycls.heads.ops import cpu_backend, torch_backend, triton_backend

    reference = torch_backend.BACKEND
    if torch.compiler.is_compiling():
        return Choice(reference, "torch.compile makes the kernels")
    if len(targets) > 1:
        return Choice(reference, "a mixture of labels")
    if spec.transform.kernel is None:
        return Choice(reference, f"the kernels do not have {type(spec.transform).__name__}")
    if bias is not None and spec.kind == "cosine":
        return Choice(reference, "the kernels do not have cosines with a bias")
    backend = triton_backend if x.is_cuda else cpu_backend
    found, reason = backend.for_operands(spec, x, rows, [bias, *others], targets)
    return Choice(found or reference, reason)
