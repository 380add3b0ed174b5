"""Classes sharded among processes: each has the prototypes, and the logits, of its shard.

The features of all processes are gathered, each process scores them against its classes (``ops/fused.py``), and what a softmax
needs of a sample goes back to the process that has it: the largest of the processes' log-sum-exps (one all-reduce of
[N] numbers), then their sum together with the target's score, which only its owner knows (another). Margins, criteria and
auxiliary losses then see what they see of a plain head, of their own samples.

Gradients are those of the mean of the processes' losses, as under ``DistributedDataParallel``. It averages the gradients of
what all processes have (the backbone, a learned scale), so these are the whole sum here, and leaves the shares alone.

Partial FC (An et al., CVPR 2022): in training the classes of the batch and a random part of the others, drawn again at each
step, take the place of all classes.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pycls.heads.head import Head
from pycls.heads.ops.fused import Ranking, Scores, class_scores
from pycls.heads.parts import FeatureInput, Similarity, SoftmaxCriterion

RandomBits = Callable[[int, Tensor], Tensor]
"""(step, ids int64 [n]) -> 64 random bits for each, int64 [n]."""


class ClassShard:
    """The classes [low, high) of this process, and what it says to the others.

    Args:
        classes: K, of all processes.
        rank: of this process.
        world_size: processes; 1 needs no process group.
        sample_rate: share of each process's classes that a training step looks at; the batch's own always are.
        draw: where that share is below 1, what draws it.

    Raises:
        ValueError: a process would have no class, or the rate is not in (0, 1].
    """

    def __init__(
        self, classes: int, rank: int = 0, world_size: int = 1, sample_rate: float = 1.0, draw: RandomBits | None = None
    ) -> None:
        if world_size > classes:
            raise ValueError(f"{classes} classes cannot be sharded among {world_size} processes")
        if not 0 < sample_rate <= 1 or (sample_rate < 1 and draw is None):
            raise ValueError(f"the share of classes in a step is in (0, 1], not {sample_rate}, and has to be drawn")
        self.classes, self.rank, self.world_size, self.sample_rate, self.draw = classes, rank, world_size, sample_rate, draw
        self.low, self.high = self.limits(rank)

    def limits(self, rank: int) -> tuple[int, int]:
        """[low, high) of a process's classes; two processes' numbers differ by one at most."""
        return self.classes * rank // self.world_size, self.classes * (rank + 1) // self.world_size

    def rows(self, count: int) -> slice:
        """This process's of ``count`` rows, which are as many for each of the K classes."""
        per_class = count // self.classes
        return slice(self.low * per_class, self.high * per_class)

    def own_rows(self, value: Tensor) -> Tensor:
        """This process's rows of ``value`` [K * rows a class, ...], a copy; a number is everyone's."""
        return value[self.rows(len(value))].clone() if value.ndim else value

    def sizes(self, value: Tensor) -> list[int]:
        """How many rows each process has of what this one has as ``value``."""
        per_class = len(value) // (self.high - self.low)
        return [(high - low) * per_class for low, high in map(self.limits, range(self.world_size))]

    def whole(self, value: Tensor) -> Tensor:
        """Undoes :meth:`own_rows`: the rows of all classes, of each process's. All processes call it."""
        return _gathered(value, self.sizes(value)) if value.ndim else value

    def scores(
        self, similarity: Similarity, inputs: FeatureInput, targets: Tensor | None, *, total: bool | Tensor,
        offset: Tensor | None, chunk: int, step: Tensor | int,
    ) -> Scores:  # fmt: skip
        """What :meth:`pycls.heads.parts.Similarity.scores` gives of this process's samples, over all classes.

        In training every process has as many samples. Logits [N, K] are given without targets only, and have no gradient.
        """
        sizes = self._sizes(inputs.x, even=similarity.training)
        own = slice(sum(sizes[: self.rank]), sum(sizes[: self.rank + 1]))
        x = _Gathered.apply(inputs.x, sizes, self.rank)
        prototypes = similarity.prototypes()
        shared: dict[str, Any] = {"target_norm": _summed(inputs.target_norm, self.world_size),
                                  "scale": _summed(similarity.logit_scale(), self.world_size),
                                  "products": inputs.products}  # fmt: skip
        if targets is None:
            with torch.no_grad():
                logits = class_scores(x, prototypes, similarity.spec, chunk=chunk, **shared).logits
                assert logits is not None
                return Scores(self.whole(logits.t())[:, own].t().contiguous())
        targets = _gathered(targets, sizes)
        here = (targets >= self.low) & (targets < self.high)
        labels = torch.where(here, targets - self.low, -1)
        offset = None if offset is None else offset[self.low : self.high]
        total = total[self.low : self.high] if isinstance(total, Tensor) else total
        if similarity.training and self.sample_rate < 1:
            chosen = self._chosen(labels[here], int(step))
            labels = torch.where(here, torch.searchsorted(chosen, labels.clamp(min=0)), -1)
            prototypes = prototypes.select(chosen, similarity.spec.num_centers)
            offset = None if offset is None else offset.index_select(0, chosen)
        scores = class_scores(
            x, prototypes, similarity.spec, offset=offset, targets=labels, reduce=True, total=total,
            squared_norms=similarity.needs_squared_norm, chunk=chunk, absent=True, **shared,
        )  # fmt: skip
        by_owner = [*scores.score, *scores.squared_norm, *scores.log_determinant]
        sets = targets.shape[1]
        masks = list(here.unbind(dim=1))
        known = [torch.where(masks[k % sets], value, 0) for k, value in enumerate(by_owner)]
        others, summed, max_other = _Combined.apply(
            torch.stack(scores.others_logsumexp), torch.stack(known if scores.total is None else [*known, scores.total]),
            _max_other_logit(scores, labels), sizes, self.rank,
        )  # fmt: skip
        kinds = [tuple(summed[k : k + sets]) for k in range(0, len(known), sets)]
        return Scores(
            logits=None,
            total=None if scores.total is None else summed[-1],
            max_other_logit=max_other,
            others_logsumexp=tuple(others),
            score=kinds.pop(0),
            squared_norm=kinds.pop(0) if scores.squared_norm else (),
            log_determinant=kinds.pop(0) if kinds else (),
            ranking=None if similarity.training or scores.logits is None
            else self._ranking(scores.logits, offset, labels[:, :1], own),
        )  # fmt: skip

    def _sizes(self, x: Tensor, even: bool) -> list[int]:
        """Samples of each process; in evaluation a process may have another number than the others."""
        if even or self.world_size == 1:
            return [len(x)] * self.world_size
        size = torch.tensor([len(x)], device=x.device)
        return [int(n) for n in _gathered(size, [1] * self.world_size)]

    def _chosen(self, present: Tensor, step: int) -> Tensor:
        """Some of this process's classes, in order: those ``present`` in the batch, and the first of a random order."""
        assert self.draw is not None
        ids = torch.arange(self.low, self.high, device=present.device)
        order = self.draw(step, ids)
        order[present] = torch.iinfo(order.dtype).min
        wanted = max(1, round(self.sample_rate * len(ids)), present.unique().numel())
        return order.topk(wanted, largest=False).indices.sort().values

    @torch.no_grad()
    def _ranking(self, logits: Tensor, offset: Tensor | None, labels: Tensor, own: slice) -> Ranking:
        """Of this process's samples, from everyone's logits [N of all, classes of a process]."""
        logits = logits if offset is None else logits + offset
        here, column = labels >= 0, labels.clamp(min=0)
        found = logits.gather(1, column)
        target = torch.where(here, found, -torch.inf)
        _reduce(target, dist.ReduceOp.MAX, self.world_size)
        before = logits.shape[1] - (logits < target).sum(dim=1) - here[:, 0].long()
        _reduce(before, dist.ReduceOp.SUM, self.world_size)
        best, place = logits.scatter(1, column, torch.where(here, -torch.inf, found)).max(dim=1)
        numbers = torch.stack((logits.logsumexp(dim=1), logits.amax(dim=1), best))
        numbers = _gathered(numbers[None], [1] * self.world_size)[:, :, own]  # [R, 3, N]
        places = _gathered(place[None] + self.low, [1] * self.world_size)[:, own]
        log_sum, highest = numbers[:, 0].logsumexp(dim=0), numbers[:, 1].amax(dim=0)
        rival = places.gather(0, numbers[:, 2].argmax(dim=0, keepdim=True))[0]
        return Ranking(before[own], log_sum - target[own, 0], (highest - log_sum).exp(), rival)


def shard_classes(head: Head, shard: ClassShard) -> None:
    """Keeps of a head's prototypes, and of all that belongs to a class in its similarity, this process's share.

    Raises:
        ValueError: the head needs all logits in one place, or the shares cannot be sampled.
    """
    criterion = head.criterion
    if not isinstance(criterion, SoftmaxCriterion):
        raise ValueError(
            f"the criterion {getattr(criterion, 'name', type(criterion).__name__)} needs every logit of a sample in one "
            "place; with classes sharded among processes (HEAD.PARALLEL class) take cross_entropy, class_balanced, "
            "logit_adjustment or focal"
        )
    if shard.sample_rate < 1 and criterion.uses_total:
        raise ValueError("label smoothing spreads over all classes: HEAD.SAMPLE_RATE must be 1 with it")
    similarity = head.similarity
    for name in similarity.class_rows():
        value = similarity.get_parameter(name)
        setattr(similarity, name, nn.Parameter(shard.own_rows(value.detach()), requires_grad=value.requires_grad))
    similarity.shard = shard


class _Gathered(torch.autograd.Function):
    """The rows [N, D] of all processes; its gradient is the sum of theirs, times their number (see above)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int], rank: int) -> Tensor:  # type: ignore[override]
        ctx.sizes, ctx.rank = sizes, rank
        return _gathered(x, sizes) if len(sizes) > 1 else x.view_as(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        sizes, rank = ctx.sizes, ctx.rank
        if len(sizes) > 1:
            parts = list(grad.contiguous().split(sizes))
            if min(sizes) == max(sizes):
                grad = torch.empty_like(parts[rank])
                dist.reduce_scatter(grad, parts)
            else:
                dist.all_reduce(grad)
                grad = parts[rank]
            grad = grad * len(sizes)
        return grad, None, None


class _Combined(torch.autograd.Function):
    """Of each process's classes -> of all classes, of the samples of this process.

    ``others`` [L, N of all], log-sum-exps, are added as such; ``summed`` [S, N of all] are added; ``rival`` [N of all] is
    the largest. Its gradient is that of the mean over the processes.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, others: Tensor, summed: Tensor, rival: Tensor, sizes: list[int], rank: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        sets, start = len(others), sum(sizes[:rank])
        own = slice(start, start + sizes[rank])
        highest = torch.cat((others, rival[None]))
        _reduce(highest, dist.ReduceOp.MAX, len(sizes))
        sums = torch.cat(((others - highest[:-1]).exp_(), summed))
        _reduce(sums, dist.ReduceOp.SUM, len(sizes))
        whole = sums[:sets].log_().add_(highest[:-1])
        ctx.sizes = sizes
        ctx.save_for_backward((others - whole).exp_())
        result = whole[:, own].clone(), sums[sets:, own].clone(), highest[-1, own].clone()
        ctx.mark_non_differentiable(result[2])
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_others: Tensor, by_summed: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (shares,) = ctx.saved_tensors
        grad = _gathered(torch.cat((by_others, by_summed)).t(), ctx.sizes).t().div(len(ctx.sizes))
        return grad[: len(shares)] * shares, grad[len(shares) :], None, None, None


class _Summed(torch.autograd.Function):
    """A number that every process has, used with a share of the classes: the mean over processes is to be their sum."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, world_size: int) -> Tensor:  # type: ignore[override]
        ctx.world_size = world_size
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad * ctx.world_size, None


def _summed(value: Tensor | float | None, world_size: int) -> Tensor | float | None:
    return _Summed.apply(value, world_size) if isinstance(value, Tensor) else value


@torch.no_grad()
def _max_other_logit(scores: Scores, labels: Tensor) -> Tensor:
    """[N], the largest logit here that is not the first target's."""
    if scores.logits is None:
        assert scores.max_other_logit is not None
        return scores.max_other_logit
    column = labels[:, :1].clamp(min=0)
    kept = scores.logits.gather(1, column)
    return scores.logits.scatter(1, column, torch.where(labels[:, :1] < 0, kept, -torch.inf)).amax(dim=1)


def _reduce(values: Tensor, op: Any, world_size: int) -> None:
    """In place, over the processes if there are several."""
    if world_size > 1:
        dist.all_reduce(values, op=op)


def _gathered(values: Tensor, sizes: list[int]) -> Tensor:
    """The rows of all processes, in the order of their ranks, of which each has its number."""
    if len(sizes) == 1:
        return values
    most = max(sizes)
    padded = values.contiguous()
    if len(padded) < most:
        padded = torch.cat((padded, padded.new_zeros(most - len(padded), *padded.shape[1:])))
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
