"""The four roles a head is composed of: similarity, margin, criterion, auxiliary.

A *similarity* compares features with prototypes. A *margin* makes the target's score harder to satisfy in training.
A *criterion* turns logits and labels into a loss. An *auxiliary* adds a further loss. ``pycls/heads/head.py`` puts them
together.
"""

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pycls.heads.ops.derived_weight import DerivedWeight, Prototypes
from pycls.heads.ops.fused import Scores, class_scores
from pycls.heads.ops.loss import ClosedForm
from pycls.heads.ops.spec import TINY, ScoreSpec

if TYPE_CHECKING:
    from pycls.heads.parallel.shards import ClassShard

Domain = Literal["cosine", "distance"]


class FeatureInput(NamedTuple):
    """The features as they are compared with the prototypes.

    Attributes:
        x: [N, D].
        target_norm: the norm that they are given first, a number or a 0-dim tensor; None for their own. A zero row stays.
        products: the half-precision type in which they are multiplied with the prototypes; None for their own.
    """

    x: Tensor
    target_norm: Tensor | float | None = None
    products: torch.dtype | None = None


class Target(NamedTuple):
    """What is known of the samples' target classes, as far as a score or a margin depends on it.

    Attributes:
        feature_norm: [N], |x|, if similarity or margin ``needs_feature_norm``.
        squared_norm: [N], |w_y|^2, if the similarity ``needs_squared_norm``.
        log_determinant: [N], of the class's covariance, if it has one.
    """

    feature_norm: Tensor | None = None
    squared_norm: Tensor | None = None
    log_determinant: Tensor | None = None


class Similarity(nn.Module):
    """Features [N, D] and prototypes [K, D] -> logits [N, K].

    Attributes:
        weight: the prototypes [K * num_centers, D].
        bias: [K], or None.
        spec: how the score u and the logits follow from the products (see ``ops/fused.py``).
        domain: what a margin may act on: ``"cosine"``, ``"distance"`` (squared), or None for no margin at all.
        needs_feature_norm: whether :meth:`margin_map` needs the features' norms.
        needs_squared_norm: whether it needs the squared norm of the target's prototype.
        log_likelihood: whether the logits are log-likelihoods of the features (up to a constant).
        half_products: whether the products may be made in half precision; not where large ones are to cancel that are rounded
            apart from each other.
        shard: which of the classes this process has; None for all. Its own parameters (not its modules') are then theirs.
    """

    domain: ClassVar[Domain | None] = None
    needs_feature_norm: bool = False
    needs_squared_norm: bool = False
    log_likelihood: ClassVar[bool] = False
    half_products: bool = True
    weight: nn.Parameter
    bias: nn.Parameter | None
    spec: ScoreSpec
    shard: "ClassShard | None" = None

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("bias", None)

    @property
    def num_classes(self) -> int:
        """K."""
        return self.shard.classes if self.shard is not None else len(self.weight) // self.spec.num_centers

    def class_rows(self) -> list[str]:
        """Names of the parameters with as many rows for each of the K classes: its own (not its modules'), but for single
        numbers. They are sharded, and move, by class."""
        return [name for name, value in self.named_parameters(recurse=False) if value.ndim]

    def inputs(self, features: Tensor) -> FeatureInput:
        """What depends on the features alone; as they are, unless overridden."""
        return FeatureInput(features)

    def prototypes(self) -> Prototypes | DerivedWeight:
        """What depends on the prototypes alone."""
        return Prototypes(self.weight, self.bias)

    def logit_scale(self) -> Tensor | None:
        """0-dim tensor that multiplies the spec's logit transform, or None."""
        return None

    def margin_map(self, target: Target) -> tuple[Tensor | float, Tensor | float]:
        """(factor, shift) with score = factor v + shift of the cosine or squared distance v; each a number, 0-dim or [N].

        Only called if there is a domain.
        """
        raise NotImplementedError(f"{type(self).__name__} has no margin domain")

    def scores(
        self,
        inputs: FeatureInput,
        targets: Tensor | None = None,
        *,
        reduce: bool = False,
        total: bool | Tensor = False,
        offset: Tensor | None = None,
        chunk: int = 0,
        step: Tensor | int = 0,
    ) -> Scores:
        """One pass over the prototypes; see :func:`pycls.heads.ops.fused.class_scores`. ``step`` is the number of training
        passes so far, for the sampling of sharded classes."""
        if self.shard is not None:
            return self.shard.scores(self, inputs, targets, total=total, offset=offset, chunk=chunk, step=step)
        return class_scores(
            inputs.x, self.prototypes(), self.spec, target_norm=inputs.target_norm, scale=self.logit_scale(), offset=offset,
            targets=targets, reduce=reduce, total=total, squared_norms=self.needs_squared_norm and targets is not None,
            chunk=chunk, products=inputs.products,
        )


class Margin(nn.Module):
    """What is asked of the target class in training, as a change of its cosine or squared distance.

    A margin has one of two methods: :meth:`value_and_slope` (quick), or :meth:`forward`, differentiated by autograd. One with
    parameters, or whose value depends on the features' norm with a gradient, needs ``forward``.

    Attributes:
        domain: which of the two it acts on.
        needs_feature_norm: whether it needs ``target.feature_norm``.
    """

    domain: ClassVar[Domain]
    needs_feature_norm: bool = False

    def check(self, num_classes: int) -> None:
        """Raises ``ValueError`` if the margin's own numbers do not fit so many classes."""

    def value_and_slope(self, value: Tensor, labels: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """The cosine or squared distance with the margin, and its derivative by ``value``.

        Args:
            value: cosine or squared distance of the targets, [N]; not to be overwritten.
            labels: int64 [N], clamped to 0 where there is no target.
            target: what else is known of the targets.

        Returns:
            Value and slope, [N] each, in new memory.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither value_and_slope nor forward")

    def forward(self, value: Tensor, labels: Tensor, target: Target | None = None) -> Tensor:
        """The cosine or squared distance [N] with the margin, differentiable by ``value``."""
        target = target or Target()
        result: Tensor = ClosedForm.apply(lambda v: self.value_and_slope(v, labels, target), value)
        return result

    @property
    def is_closed_form(self) -> bool:
        """Whether value and slope come from :meth:`value_and_slope`."""
        return type(self).forward is Margin.forward

    def advance(self) -> None:
        """Called once a training step, after the loss: moves the buffers of an annealing schedule.

        For ``torch.compile`` the margin reads them by :func:`pycls.heads.snapshot.snapshot`.
        """

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

    It has one of two methods: :meth:`value_and_grads` (quick), or :meth:`forward`, differentiated by autograd, which one with
    parameters needs.

    Attributes:
        uses_total: whether it needs the sum.
    """

    uses_total: bool = False

    def offset(self) -> Tensor | None:
        """[K], added to all logits before they are compared; None for nothing.

        What it gives in evaluation mode is part of the logits that the head returns (post-hoc adjustment).
        """
        return None

    def value_and_grads(
        self, target: Tensor, others: Tensor, total: Tensor | None, labels: Tensor, num_classes: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Loss a sample, and its derivatives by ``target``, ``others`` and ``total`` (None if it is not used); [N] each.

        Args:
            target: logit of the target with its margin, [N]; not to be overwritten.
            others: log-sum-exp of the other logits, [N].
            total: sum of all logits with the target's margin, [N], if ``uses_total``.
            labels: int64 [N], clamped to 0 where there is no target.
            num_classes: K.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither value_and_grads nor forward")

    def forward(
        self, target: Tensor, others: Tensor, total: Tensor | None, labels: Tensor, num_classes: int
    ) -> Tensor:
        """Loss a sample [N], differentiable; arguments as of :meth:`value_and_grads`."""
        result: Tensor = ClosedForm.apply(
            lambda t, o, s: self.value_and_grads(t, o, s, labels, num_classes), target, others, total
        )
        return result

    @property
    def is_closed_form(self) -> bool:
        """Whether value and slopes come from :meth:`value_and_grads`."""
        return type(self).forward is SoftmaxCriterion.forward


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

    def update(self, features: Tensor, labels: Tensor, weights: Tensor) -> None:
        """Called once a training step, after the loss: moves buffers such as centres. ``weights`` are 0, lam or 1.

        For ``torch.compile`` the loss reads them by :func:`pycls.heads.snapshot.snapshot`.
        """


def norm(x: Tensor) -> Tensor:
    """|x| [N] of x [N, D], at least 1e-12; a zero row has zero gradient."""
    result: Tensor = _Norm.apply(x)
    return result


class _Norm(torch.autograd.Function):
    """Autograd's own backward of a norm is five operations over [N, D]; this is one."""

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
