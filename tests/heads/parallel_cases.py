"""Heads whose classes are sharded, one case a line, and the process that runs all of them: ``rank world_size store out``.

Each process writes what it found to ``out/<world_size>_<rank>.pt``; ``test_parallel.py`` compares.
"""

import copy
import sys
from typing import Any

import torch
import torch.distributed as dist
from harness import CASES, make_batch, make_head, options_of
from torch import Tensor

import pycls
from pycls.build import build_network
from pycls.data import rng
from pycls.engine.checkpoint.checkpoints import load_model_state, load_optimizer_state, model_state, optimizer_state
from pycls.engine.checkpoint.sharded import class_shards, clip_gradients
from pycls.heads import Head
from pycls.heads.cross_entropy import CrossEntropy
from pycls.heads.focal import Focal
from pycls.heads.parallel.shards import ClassShard, shard_classes
from pycls.models.classifier import Classifier
from pycls.runtime.distributed import Ranks

DIM, CLASSES, BATCH = 6, 13, 12
"""BATCH is divided by 2 and by 3, CLASSES by neither."""

TOP_K = {"smooth_topk", "hard_topk"}
NAMES: list[tuple[str, int, str]] = [
    (name, case, kind)
    for name in CASES if name not in TOP_K
    for case in range(len(CASES[name]))
    for kind in (("labels", "missing", "mixture") if case == 0 else ("labels",))
] + [(name, 0, "labels") for name in ("smoothed", "weighted", "focal", "chunked", "arc_with_warmup")]  # fmt: skip
WEIGHTS = [0.5 + 0.2 * j for j in range(CLASSES)]


def plain_head(name: str, case: int) -> tuple[Head, str, dict[str, Any]]:
    """The head of a case, and the entry and the options that its batch is made for."""
    entry = {"smoothed": "arcface", "weighted": "softmax", "focal": "cosface", "chunked": "rbf_softmax",
             "arc_with_warmup": "arcface"}.get(name, name)  # fmt: skip
    options = options_of(entry, case, CLASSES)
    head = make_head(entry, DIM, CLASSES, options, torch.float64, seed=case)
    assert isinstance(head, Head)
    if name in ("smoothed", "weighted"):
        head.criterion = CrossEntropy(0.1, WEIGHTS if name == "weighted" else None)
    if name == "focal":
        head.criterion = Focal()
    if name == "ring":
        head.auxiliaries[0].started.fill_(True)
    if name == "chunked":
        head.chunk = 2
    if name == "arc_with_warmup":
        head.margin_warmup = 7
    return head, entry, options


def classifier(head: Head) -> Classifier:
    """The head behind a linear map: something that every process has, and that learns by the features' gradient."""
    backbone = torch.nn.Linear(DIM, DIM, bias=False, dtype=torch.float64)
    with torch.no_grad():
        backbone.weight.copy_(torch.eye(DIM) + 0.01 * torch.arange(DIM * DIM).view(DIM, DIM))
    return Classifier(backbone, head).double()


def batch_of(entry: str, head: Head, options: dict[str, Any], kind: str) -> tuple[Tensor, Any]:
    batch = make_batch(entry, head, options, BATCH, seed=3, kind=kind)
    return batch.features, batch.labels


def part_of(labels: Any, rows: slice) -> Any:
    return labels[rows] if isinstance(labels, Tensor) else (labels[0][rows], labels[1][rows], labels[2])


def draw(step: int, ids: Tensor) -> Tensor:
    return rng.hash64(5, step, ids, rng.NEGATIVES)


def run_case(case: tuple[str, int, str], rank: int, world_size: int) -> dict[str, Any]:
    head, entry, options = plain_head(*case[:2])
    features, labels = batch_of(entry, head, options, case[2])
    rows = slice(rank * BATCH // world_size, (rank + 1) * BATCH // world_size)
    shard_classes(head, ClassShard(CLASSES, rank, world_size))
    model = classifier(head)
    network = build_network(model, torch.device("cpu"), Ranks(rank, world_size))
    output = network(features[rows], part_of(labels, rows))
    output.loss.backward()
    shards = class_shards(model)
    gradients = {n: shards[n].whole(p.grad) if n in shards else p.grad.clone() for n, p in model.named_parameters()
                 if p.grad is not None}  # fmt: skip
    clip_gradients(model, 1e-3)
    norm = sum(float((shards[n].whole(p.grad) if n in shards else p.grad).square().sum()) for n, p in model.named_parameters()
               if p.grad is not None) ** 0.5  # fmt: skip
    found = {"loss": output.loss.detach(), "gradients": gradients, "correct": output.correct, "clipped": norm, "buffers": dict(
        model.named_buffers())}  # fmt: skip
    model.eval()
    uneven = slice(0, 5) if rank == 0 else slice(5 + (rank - 1) * 2, 7 + (rank - 1) * 2) if rank < world_size - 1 else slice(
        5 + (rank - 1) * 2, BATCH)  # fmt: skip
    with torch.no_grad():
        found["logits"] = model(features[uneven]).logits
        seen = part_of(labels, uneven)
        if case[2] == "labels":
            judged = model(features[uneven], seen)
            found |= {"ranking": judged.ranking, "eval_loss": judged.loss, "rows": uneven}
    return found


def sampled(rank: int, world_size: int, rate: float) -> dict[str, Any]:
    """Ten steps of ArcFace with a sample of the classes."""
    torch.manual_seed(0)
    head = pycls.create_head("arcface", DIM, 1000, scale=8.0)
    shard_classes(head, ClassShard(1000, rank, world_size, rate, draw))
    model = classifier(head)
    losses, touched = [], []
    for step in range(3):
        x = torch.randn(BATCH, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        y = torch.arange(BATCH) * 83 + step
        rows = slice(rank * BATCH // world_size, (rank + 1) * BATCH // world_size)
        model.zero_grad()
        loss = model(x[rows], y[rows]).loss
        loss.backward()
        losses.append(loss.detach())
        touched.append(head.similarity.shard.whole(head.weight.grad))
    return {"losses": losses, "touched": touched}


def states(rank: int, world_size: int, out: str) -> dict[str, Any]:
    """A state with momentum: of a plain model (written by the parent) loaded and joined again."""
    whole = torch.load(f"{out}/whole.pt", weights_only=True)
    head, _, _ = plain_head("lgm", 1)
    shard_classes(head, ClassShard(CLASSES, rank, world_size))
    model = classifier(head)
    optimizer = torch.optim.AdamW(model.parameters())
    load_model_state(model, whole["model"], "whole.pt")
    load_optimizer_state(model, optimizer, whole["optimizer"])
    return {"model": model_state(model), "optimizer": copy.deepcopy(optimizer_state(model, optimizer)),
            "rows": len(head.weight), "in rank 0": (model_state(model, "rank 0"), copy.deepcopy(
                optimizer_state(model, optimizer, "rank 0")))}  # fmt: skip


def main(rank: int, world_size: int, store: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, world_size), rank=rank, world_size=world_size)
    found: dict[str, Any] = {"/".join(map(str, case)): run_case(case, rank, world_size) for case in NAMES}
    found["sampled"] = {rate: sampled(rank, world_size, rate) for rate in (1.0, 0.1)}
    found["states"] = states(rank, world_size, out)
    torch.save(found, f"{out}/{world_size}_{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
