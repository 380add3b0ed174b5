"""Sums kept on the device: what training and evaluation count, read by the host only when asked."""

from typing import Any

import torch
from torch import Tensor

from pycls.runtime.distributed import all_reduce_sum


def ranks_of_targets(logits: Tensor, labels: Tensor) -> Tensor:
    """How many classes stand before the label, int64 [N]; 0 means top-1 is right.

    Counting is cheaper than sorting and exact. A class that ties with the label stands before it, and so does every
    class if the label's logit is not a number: equal logits everywhere are no correct answer.
    """
    own = logits.gather(1, labels[:, None])
    return (~(logits < own)).sum(dim=1) - 1


class TrainMeter:
    """Loss, terms and errors of an epoch so far, and the losses since the last reading.

    Nothing here waits for the device but :meth:`read`.

    Args:
        device: where the sums are kept.
        top_k: k of the second error.
    """

    def __init__(self, device: torch.device, top_k: int) -> None:
        self.device, self.top_k = device, top_k
        self.reset()

    def reset(self) -> None:
        """Starts an epoch."""
        self.sums: dict[str, Tensor] = {}
        self.counts = torch.zeros(3, dtype=torch.int64, device=self.device)  # samples, top-1 errors, top-k errors
        self.recent: list[Tensor] = []

    @torch.no_grad()
    def update(
        self, loss: Tensor, terms: dict[str, Tensor], logits: Tensor | None, labels: Tensor, first: Tensor | None = None
    ) -> None:
        """Adds a batch: mean loss, its terms, logits [N, K] and labels [N] (of a mixture the first).

        Without logits ``first`` [N] says whose label is first; a label that is not counts as outside the top k, too.
        """
        samples = len(labels)
        for name, value in {"loss": loss.detach(), **(terms if len(terms) > 1 else {})}.items():
            self.sums[name] = self.sums.get(name, 0) + value * samples
        if logits is None:
            assert first is not None, "logits, or who is right"
            ranks = torch.where(first, 0, self.top_k)
        else:
            ranks = ranks_of_targets(logits.detach(), labels)
        self.counts += torch.stack((torch.full_like(ranks[0], samples), (ranks > 0).sum(), (ranks >= self.top_k).sum()))
        self.recent.append(loss.detach())

    def read(self) -> tuple[dict[str, float], list[float]]:
        """Means of the epoch so far over all processes (errors in percent), and this process's losses since last time.

        All processes call it after the same step.
        """
        names = list(self.sums)
        sums = all_reduce_sum(torch.stack([self.sums[name].float() for name in names]))
        samples, first, kth = all_reduce_sum(self.counts.clone()).tolist()
        values = torch.cat((sums, torch.stack(self.recent).float() if self.recent else sums[:0])).tolist()
        recent, self.recent = values[len(names) :], []
        means = {name: value / max(samples, 1) for name, value in zip(names, values, strict=False)}
        means["top1_err"], means["topk_err"] = 100 * first / max(samples, 1), 100 * kth / max(samples, 1)
        return means, recent

    def state_dict(self) -> dict[str, Any]:
        """This process's sums, for a checkpoint in the middle of an epoch."""
        return {"sums": {name: value.cpu() for name, value in self.sums.items()}, "counts": self.counts.cpu()}

    def load_state_dict(self, states: list[dict[str, Any]], rank: int, world_size: int) -> None:
        """Continues from the sums that the processes had, by rank; other processes than then share them anew."""
        self.reset()
        state = states[rank] if len(states) == world_size else _all_to_first(states, rank)
        self.sums = {name: value.to(self.device) for name, value in state["sums"].items()}
        self.counts = state["counts"].to(self.device)


def _all_to_first(states: list[dict[str, Any]], rank: int) -> dict[str, Any]:
    """Rank 0 continues the sums of all; the others start at 0."""
    names, share = states[0]["sums"], float(rank == 0)
    sums = {name: torch.stack([state["sums"][name] for state in states]).sum(0) * share for name in names}
    return {"sums": sums, "counts": torch.stack([state["counts"] for state in states]).sum(0) * int(share)}
