"""What stands between the matrix products of the pass over the prototypes, where it is not torch's operations."""

from typing import Protocol

from torch import Tensor

from pycls.heads.gram_chunk import Chunk, Gradients
from pycls.heads.gram_sums import Sums


class RowFunctions(Protocol):
    """Compiled C (``gram_native.Rows``, which says what each argument is) or Triton's kernels (``gram_triton.TritonRows``).

    Both know one label a sample, one prototype a class, and the links that have a number (``Link.compiled``). Two calls with
    the same arguments give the same bits.
    """

    def stretch(self, x: Tensor, length: Tensor | float) -> tuple[Tensor, Tensor]:
        """Features [N, D] of that norm, and their factor [N, 1]; in half precision the features as they are."""

    def unstretch_(self, grad: Tensor, x: Tensor, factor: Tensor, along: Tensor, length: Tensor | float) -> None:
        """From the gradient by what :meth:`stretch` gave to that by the features."""

    def squares(self, rows: Tensor, constant: float, rate: float, added: Tensor | None = None) -> Tensor:
        """``constant + rate |v|^2 + added`` of each row, [N, 1]."""

    def squares_of_targets(self, weight: Tensor, column: Tensor) -> Tensor:
        """|w|^2 [N] of the targets' prototypes."""

    def add_to_targets(self, grad: Tensor, weight: Tensor, column: Tensor, by_square: Tensor) -> None:
        """Adds the gradient by those squares."""

    def forward(
        self, part: Chunk, z: Tensor, column: Tensor | None, offset: Tensor | None, measure: Tensor | None,
        sums: Sums | None, rival: Tensor | None, kept: bool,
    ) -> None:  # fmt: skip
        """The logits of a chunk, in ``z`` if they are ``kept``, and what a softmax needs of them."""

    def backward(
        self, part: Chunk, z: Tensor, column: Tensor, offset: Tensor | None, sums: Sums, by_others: Tensor,
        by_total: Tensor | None, total: Tensor | None, by_measure: Tensor | None, grads: Gradients,
        again: bool,
    ) -> None:  # fmt: skip
        """A chunk's share of all gradients; ``again`` if ``z`` does not have the logits."""

    def combine_(
        self, out: Tensor, alpha: float, p: Tensor | None, rows: Tensor, beta: float, q: Tensor, r: Tensor | None, power: int
    ) -> None:
        """``out = alpha p out + beta q r^power rows``."""
