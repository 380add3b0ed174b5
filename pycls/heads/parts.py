"""The four roles a head is composed of: similarity, margin, criterion, auxiliary.

A *similarity* compares features with prototypes. A *margin* makes the target's measure harder to satisfy in training.
A *criterion* turns logits and labels into a loss. An *auxiliary* adds a further loss. ``pycls/heads/head.py`` puts them
together.
"""

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pycls.heads.codes import MarginCode, TargetCode
from pycls.heads.form import TINY, Form
from pycls.heads.gram import Scores, gram_scores
from pycls.heads.prototypes import Prototypes, Recipe

if TYPE_CHECKING:
    from pycls.heads.parallel import ClassShard

Domain = Literal["cosine", "distance"]


class Queries(NamedTuple):
    """The features as the prototypes see them.

    Attributes:
        x: [N, D].
        length: what they are stretched or shrunk to, a number or a 0-dim tensor; None for as they are. A zero row stays.
        products: the half-precision type in which they are multiplied with the prototypes; None for their own.
    """

    x: Tensor
    length: Tensor | float | None = None
    products: torch.dtype | None = None


class Similarity(nn.Module):
    """Features [N, D] and prototypes [K, D] -> logits [N, K].

    Attributes:
        weight: the prototypes [K * num_centers, D].
        bias: [K], or None.
        form: how the measure u and the logits follow from the products (see ``gram.py``).
        domain: what a margin may act on: ``"cosine"``, ``"distance"`` (squared), or None for no margin at all.
        needs_feature_norms: whether what a margin acts on needs the features' norms.
        needs_norms: whether it needs the norm of the target's prototype.
        log_likelihood: whether the logits are log-likelihoods of the features (up to a constant).
        half_products: whether the products may be made in half precision; not where large ones are to cancel that are rounded
            apart from each other.
        chunk: classes worked on at a time; 0 chooses.
        shard: which of the classes this process has; None for all. Its own parameters (not its modules') are then theirs.
    """

    domain: ClassVar[Domain | None] = None
    needs_feature_norms: bool = False
    needs_norms: bool = False
    log_likelihood: ClassVar[bool] = False
    half_products: bool = True
    weight: nn.Parameter
    bias: nn.Parameter | None
    form: Form
    chunk: int = 0
    shard: "ClassShard | None" = None

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("bias", None)

    @property
    def num_classes(self) -> int:
        """K."""
        return self.shard.classes if self.shard is not None else len(self.weight) // self.form.num_centers

    def class_rows(self) -> list[str]:
        """Names of the parameters with as many rows for each of the K classes: its own (not its modules'), but for single
        numbers. They are shared out, and move, by class."""
        return [name for name, value in self.named_parameters(recurse=False) if value.ndim]

    @abstractmethod
    def queries(self, features: Tensor) -> Queries:
        """What depends on the features alone."""

    def prototypes(self) -> Prototypes | Recipe:
        """What depends on the prototypes alone; a recipe where they are not what is learned, but made of it."""
        return Prototypes(self.weight, self.bias)

    def link_scale(self) -> Tensor | None:
        """0-dim tensor handed to the form's link, or None."""
        return None

    def to_margin_domain(self, u: Tensor, target: "Target") -> Tensor:
        """The cosine or squared distance behind the measure u [N]. Only called if there is a domain."""
        raise AssertionError(f"{type(self).__name__} has no margin domain")

    def from_margin_domain(self, value: Tensor, target: "Target") -> Tensor:
        """Inverse of :meth:`to_margin_domain`."""
        raise AssertionError(f"{type(self).__name__} has no margin domain")

    def target_code(self) -> TargetCode | None:
        """The two above for the compiled loss, to be said by the class that has them; None for one that it does not know."""
        return TargetCode() if self.domain is None else None

    def link(self, u: Tensor) -> Tensor:
        """Logit of measure u [N], differentiable."""
        return u

    def scores(
        self,
        queries: Queries,
        targets: Tensor | None = None,
        *,
        reduce: bool = False,
        total: bool | Tensor = False,
        offset: Tensor | None = None,
    ) -> Scores:
        """One pass over the prototypes; see :func:`pycls.heads.gram.gram_scores`."""
        if self.shard is not None:
            return self.shard.scores(self, queries, targets, total=total, offset=offset)
        return gram_scores(
            queries.x, self.prototypes(), self.form, length=queries.length, scale=self.link_scale(), offset=offset,
            targets=targets, reduce=reduce, total=total, norms=self.needs_norms and targets is not None,
            chunk=self.chunk, products=queries.products,
        )


class Target(NamedTuple):
    """A sample's target class, as far as its measure may depend on it.

    Attributes:
        feature_norm: [N], |x|, if the similarity ``needs_feature_norms``.
        squared_norm: [N], |w_y|^2, if the similarity ``needs_norms``.
        log_determinant: [N], of the class's covariance, if it has one.
    """

    feature_norm: Tensor | None
    squared_norm: Tensor | None
    log_determinant: Tensor | None


class Margin(nn.Module):
    """What is asked of the target class in training, as a change of its cosine or squared distance.

    Attributes:
        domain: which of the two it acts on.
    """

    domain: ClassVar[Domain]

    @abstractmethod
    def forward(self, measure: Tensor, labels: Tensor) -> Tensor:
        """The target's measure [N] with the margin; ``labels`` int64 [N], clamped to 0 where there is no target."""

    def check(self, num_classes: int) -> None:
        """Raises ``ValueError`` if the margin's own numbers do not fit so many classes."""

    def code(self) -> MarginCode | None:
        """The margin as it is now for the compiled loss, to be said by the class that has ``forward``; None for one that it
        does not know."""
        return None

    def advance(self) -> None:
        """Called once a training step, after the loss: moves the buffers of an annealing schedule."""

    def class_priors(self) -> list[str]:
        """Names of the buffers with a number for each class that are made of the training set's counts or of options."""
        return []


class Criterion(nn.Module):
    """Logits and labels -> a loss a sample [N]."""

    def check(self, num_classes: int) -> None:
        """Raises ``ValueError`` if the criterion's own numbers do not fit so many classes."""

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch (from 0 on) by the training loop, for schedules by epoch."""

    def class_weights(self) -> Tensor | None:
        """[K], weights of the samples of each class in the mean, or None for equal ones."""
        return None

    def class_priors(self) -> list[str]:
        """Names of the buffers with a number for each class that are made of the training set's counts or of options."""
        return []


class SoftmaxCriterion(Criterion):
    """A criterion that looks at the logits only through the target's, the log-sum-exp of the others and their sum.

    Attributes:
        uses_total: whether it needs the sum.
        plain: whether it is ``log(1 + exp(others - target))``, which the compiled loss knows; to be said by the class that
            has ``forward``.
    """

    uses_total: bool = False
    plain: bool = False

    def offset(self) -> Tensor | None:
        """[K], added to all logits before they are compared; None for nothing.

        What it gives in evaluation mode is part of the logits that the head returns (post-hoc adjustment).
        """
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
    def forward(self, logits: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        """Loss a sample, [N].

        Args:
            logits: [N, K], without margin; the label's own must not be used, nor get a gradient.
            target: the label's, with its margin [N].
            labels: int64 [N], clamped to 0 where there is no target.
        """


class Auxiliary(nn.Module):
    """A further loss on features and labels.

    Attributes:
        term: its name among ``HeadOutput.terms``.
        needs_likelihood: whether it needs logits that are log-likelihoods.
    """

    term: ClassVar[str]
    needs_likelihood: ClassVar[bool] = False

    @abstractmethod
    def forward(self, features: Tensor, labels: Tensor, logit: Tensor, weights: Tensor) -> Tensor:
        """Scalar loss.

        Args:
            features: [N, D].
            labels: int64 [N], clamped to 0 where there is no target.
            logit: the target's, without margin [N].
            weights: [N], the share of each sample in the mean (0 where there is no target).
        """

    def class_rows(self) -> list[str]:
        """Names of the parameters and buffers with as many rows for each of the K classes."""
        return []

    def of_mean_logit(self) -> float | None:
        """For the compiled loss, to be said by the class that has ``forward``: the number of which the loss is the product
        with the mean of the targets' logits; None for another loss."""
        return None

    def update(self, features: Tensor, labels: Tensor, weights: Tensor) -> None:
        """Called once a training step, after the loss: moves buffers such as centres. ``weights`` are 0, lam or 1."""


def norm(x: Tensor) -> Tensor:
    """|x| [N] of x [N, D], at least 1e-12; a zero row has zero gradient."""
    result: Tensor = _Norm.apply(x)
    return result


class _Norm(torch.autograd.Function):
    """Autograd's own way back from a norm is five operations over [N, D]; this is one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        norms = torch.linalg.vector_norm(x, dim=1).clamp_(min=TINY**0.5)
        ctx.save_for_backward(x, norms)
        return norms

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        x, norms = ctx.saved_tensors
        return x * (grad / norms)[:, None]
