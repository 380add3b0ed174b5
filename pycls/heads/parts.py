"""The four roles a head is composed of: similarity, margin, criterion, auxiliary.

A *similarity* compares features with prototypes. A *margin* makes the target's measure harder to satisfy in training.
A *criterion* turns logits and labels into a loss. An *auxiliary* adds a further loss. ``pycls/heads/head.py`` puts them
together.
"""

from abc import abstractmethod
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pycls.heads.gram import TINY, Form, Scores, gram_scores

Domain = Literal["cosine", "distance"]


class Queries(NamedTuple):
    """The features as the prototypes see them.

    Attributes:
        x: [N, D], with everything applied that depends on the features alone.
        row: [N] to be added to a sample's measures, or None.
        norm: [N], |features|, where the similarity's target measure needs it, or None.
    """

    x: Tensor
    row: Tensor | None = None
    norm: Tensor | None = None


class Similarity(nn.Module):
    """Features [N, D] and prototypes [K, D] -> logits [N, K].

    Attributes:
        weight: the prototypes [K * num_centers, D].
        bias: [K], or None.
        form: how the measure u and the logits follow from the products (see ``gram.py``).
        domain: what a margin may act on: ``"cosine"``, ``"distance"`` (squared), or None for no margin at all.
        needs_norms: whether the target's measure needs the norm of its prototype.
        chunk: classes worked on at a time; 0 chooses.
    """

    domain: ClassVar[Domain | None] = None
    needs_norms: bool = False
    weight: nn.Parameter
    bias: nn.Parameter | None
    form: Form
    chunk: int = 0

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("bias", None)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.weight) // self.form.num_centers

    @abstractmethod
    def queries(self, features: Tensor) -> Queries:
        """What depends on the features alone."""

    def link_scale(self) -> Tensor | None:
        """0-dim tensor handed to the form's link, or None."""
        return None

    def to_margin_domain(self, u: Tensor, queries: Queries, squared_norm: Tensor | None) -> Tensor:
        """The cosine or squared distance behind the measure u [N]. Only called if there is a domain."""
        raise NotImplementedError

    def from_margin_domain(self, value: Tensor, queries: Queries, squared_norm: Tensor | None) -> Tensor:
        """Inverse of :meth:`to_margin_domain`."""
        raise NotImplementedError

    def link(self, u: Tensor) -> Tensor:
        """Logit of measure u [N], differentiable."""
        return u

    def scores(
        self,
        queries: Queries,
        targets: Tensor | None = None,
        *,
        reduce: bool = False,
        total: bool = False,
        offset: Tensor | None = None,
    ) -> Scores:
        """One pass over the prototypes; see :func:`pycls.heads.gram.gram_scores`."""
        return gram_scores(
            queries.x, self.weight, self.form, row=queries.row, bias=self.bias, scale=self.link_scale(), offset=offset,
            targets=targets, reduce=reduce, total=total, norms=self.needs_norms and targets is not None,
            chunk=self.chunk,
        )


class Margin(nn.Module):
    """What is asked of the target class in training, as a change of its cosine or squared distance.

    Attributes:
        domain: which of the two it acts on.
    """

    domain: ClassVar[Domain]

    @abstractmethod
    def forward(self, measure: Tensor, labels: Tensor) -> Tensor:
        """The target's measure [N] with the margin; ``labels`` int64 [N] (negative entries are ignored later)."""


class Criterion(nn.Module):
    """Logits and labels -> a loss a sample [N]."""

    def check(self, num_classes: int) -> None:
        """Raises ``ValueError`` if the criterion's own numbers do not fit so many classes."""


class SoftmaxCriterion(Criterion):
    """A criterion that looks at the logits only through the target's, the log-sum-exp of the others and their sum.

    Attributes:
        uses_total: whether it needs the sum.
    """

    uses_total: bool = False

    def offset(self) -> Tensor | None:
        """[K], added to the logits (also to the target's) before they are compared; None for nothing."""
        return None

    @abstractmethod
    def forward(self, target: Tensor, others: Tensor, total: Tensor | None, labels: Tensor, classes: int) -> Tensor:
        """Loss a sample, [N].

        Args:
            target: logit of the target with its margin, [N].
            others: log-sum-exp of the other logits, [N].
            total: sum of all logits with the target's margin, [N], if ``uses_total``.
            labels: int64 [N], clamped to 0 where there is no target.
            classes: K.
        """


class LogitsCriterion(Criterion):
    """A criterion that needs every logit."""

    @abstractmethod
    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss a sample [N] of logits [N, K], the target's with its margin."""


class Auxiliary(nn.Module):
    """A further loss on features and labels.

    Attributes:
        term: its name among ``HeadOutput.terms``.
        domain: the similarity domain it needs, or None for any.
    """

    term: ClassVar[str]
    domain: ClassVar[Domain | None] = None

    @abstractmethod
    def forward(self, features: Tensor, labels: Tensor, measure: Tensor | None, weights: Tensor) -> Tensor:
        """Scalar loss.

        Args:
            features: [N, D].
            labels: int64 [N], clamped to 0 where there is no target.
            measure: the target's measure in ``domain`` without margin [N], if a domain is declared.
            weights: [N], the share of each sample in the mean (0 where there is no target).
        """

    def update(self, features: Tensor, labels: Tensor, weights: Tensor) -> None:
        """Called once a training step, after the loss: moves buffers such as centres. ``weights`` are 0, lam or 1."""


def unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """x / |x| [N, D] and |x| [N]; a zero row stays zero and has zero gradient."""
    square = x.square().sum(dim=1)
    safe = square > TINY
    norm = torch.where(safe, square, 1).sqrt()
    return x * (torch.where(safe, 1 / norm, 0))[:, None], torch.where(safe, norm, 0)
