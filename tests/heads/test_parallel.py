"""Classes sharded among real processes: the plain head's loss, gradients, ranks and states."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from parallel_cases import (  # type: ignore[import-not-found]
    BATCH,
    CLASSES,
    NAMES,
    batch_of,
    classifier,
    draw,
    part_of,
    plain_head,
)

import pycls
from pycls.engine.checkpoint.checkpoints import model_state, optimizer_state
from pycls.engine.meters import ranks_of_targets
from pycls.heads import Head
from pycls.heads.cross_entropy import CrossEntropy
from pycls.heads.parallel.shards import ClassShard, shard_classes
from pycls.models.classifier import Classifier

Found = dict[int, list[dict[str, Any]]]

CASES_FILE = Path(__file__).with_name("parallel_cases.py")
WORLDS = (2, 3)


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    """A plain model and its optimiser after two steps."""
    head, entry, options = plain_head("lgm", 1)
    features, labels = batch_of(entry, head, options, "labels")
    model = classifier(head)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        model(features, labels).loss.backward()
        optimizer.step()
    return copy.deepcopy({"model": model_state(model), "optimizer": optimizer_state(model, optimizer)})


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, trained: dict[str, Any]) -> Found:
    """What 2 and what 3 processes found, by rank."""
    out = tmp_path_factory.mktemp("parallel")
    torch.save(trained, out / "whole.pt")
    for world in WORLDS:
        running = [
            forked.Process([sys.executable, str(CASES_FILE), str(rank), str(world), str(out / f"store{world}"), str(out)],
                             stderr=subprocess.PIPE, text=True)
            for rank in range(world)
        ]  # fmt: skip
        errors = [process.communicate(timeout=120)[1] for process in running]
        assert all(process.returncode == 0 for process in running), "\n".join(errors)
    return {world: [torch.load(out / f"{world}_{rank}.pt", weights_only=False) for rank in range(world)] for world in WORLDS}


def close(got: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    error = (got - expected).abs().max() / expected.abs().max().clamp(min=1e-9)
    assert error < 1e-6, f"{what}: {float(error)}"


def reference(case: tuple[str, int, str], world: int) -> tuple[Classifier, torch.Tensor, torch.Tensor]:
    """The plain model, its loss and its logits: of the whole batch, or, where means of unequal weights make that another
    number, the mean of the processes' losses."""
    head, entry, options = plain_head(*case[:2])
    features, labels = batch_of(entry, head, options, case[2])
    model = classifier(head)
    if case[0] != "weighted" and case[2] != "missing" and case[:2] != ("ring", 2):
        output = model(features, labels)
        return model, output.loss, output.correct if output.logits is None else output.logits
    before = copy.deepcopy(model.state_dict())
    losses, logits = [], []
    for rank in range(world):
        rows = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
        output = model(features[rows], part_of(labels, rows))
        losses.append(output.loss)
        logits.append(output.logits)
        for name, buffer in model.named_buffers():
            if not torch.equal(buffer, before[name]):
                buffer.copy_(before[name])
    return model, torch.stack(losses).mean(), torch.cat(logits)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("case", NAMES, ids=["-".join(map(str, case)) for case in NAMES])
def test_shared_out_it_is_the_plain_head(found: Found, case: tuple[str, int, str], world: int) -> None:
    ours = [of_rank["/".join(map(str, case))] for of_rank in found[world]]
    model, loss, logits = reference(case, world)
    loss.backward()
    close(torch.stack([of_rank["loss"] for of_rank in ours]).mean(), loss.detach(), "loss")
    expected = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    for of_rank in ours:
        assert of_rank["gradients"].keys() == expected.keys()
        for name, gradient in expected.items():
            close(of_rank["gradients"][name], gradient, name)
    if case[2] == "labels":
        labels = batch_of(*plain_and_options(case), "labels")[1]
        correct = logits if logits.ndim == 1 else ranks_of_targets(logits, labels) == 0
        assert torch.equal(torch.cat([of_rank["correct"] for of_rank in ours]), correct)
    if case[2] == "labels" and case[0] != "weighted" and case[:2] != ("ring", 2):
        for name, buffer in model.named_buffers():
            close(ours[0]["buffers"][name].double(), buffer.double(), name)
    norm = torch.nn.utils.get_total_norm(list(expected.values()))
    for of_rank in ours:
        assert of_rank["clipped"] == pytest.approx(min(1e-3, float(norm)), rel=1e-3)


def plain_and_options(case: tuple[str, int, str]) -> tuple[str, Head, dict[str, Any]]:
    head, entry, options = plain_head(*case[:2])
    return entry, head, options


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("case", NAMES, ids=["-".join(map(str, case)) for case in NAMES])
def test_ranks_and_logits_in_evaluation(found: Found, case: tuple[str, int, str], world: int) -> None:
    """Each process has another number of samples there."""
    ours = [of_rank["/".join(map(str, case))] for of_rank in found[world]]
    model, _, _ = reference(case, world)  # one training pass, as ours
    entry, head, options = plain_and_options(case)
    features, labels = batch_of(entry, head, options, case[2])
    with torch.no_grad():
        logits = model.eval()(features).logits
    close(torch.cat([of_rank["logits"] for of_rank in ours]), logits, "logits")
    if case[2] != "labels":
        return
    log_p = logits.log_softmax(dim=1)
    before, nll, confidence, rival = (torch.cat(parts) for parts in zip(*(of_rank["ranking"] for of_rank in ours), strict=True))
    assert torch.equal(before, ranks_of_targets(logits, labels))
    close(nll, -log_p.gather(1, labels[:, None])[:, 0], "nll")
    close(confidence, log_p.amax(dim=1).exp(), "confidence")
    assert torch.equal(rival, logits.scatter(1, labels[:, None], -torch.inf).argmax(dim=1))
    for of_rank in ours:
        loss = model(features[of_rank["rows"]], labels[of_rank["rows"]]).loss
        close(of_rank["eval_loss"], loss.detach(), "loss")


@pytest.mark.parametrize("world", WORLDS)
def test_a_state_of_one_process_goes_to_several_and_back(found: Found, trained: dict[str, Any], world: int) -> None:
    for of_rank in found[world]:
        state = of_rank["states"]
        assert state["model"].keys() == trained["model"].keys() and state["optimizer"].keys() == trained["optimizer"].keys()
        assert all(torch.equal(state["model"][name], value) for name, value in trained["model"].items())
        for name, values in trained["optimizer"].items():
            assert all(torch.equal(state["optimizer"][name][key], value) for key, value in values.items())
    (model, optimizer), *others = (of_rank["states"]["in rank 0"] for of_rank in found[world])
    assert all(torch.equal(model[name], value) for name, value in trained["model"].items())
    assert all(torch.equal(optimizer[name][key], value) for name, values in trained["optimizer"].items()
               for key, value in values.items())  # fmt: skip
    weight = "head.similarity.weight"
    for of_rank, (model, optimizer) in zip(found[world][1:], others, strict=True):
        rows = of_rank["states"]["rows"]
        assert len(model[weight]) == len(optimizer[weight]["exp_avg"]) == rows, "the others have no more than their own"
    assert sum(of_rank["states"]["rows"] for of_rank in found[world]) == CLASSES
    assert {of_rank["states"]["rows"] for of_rank in found[world]} == {CLASSES // world, CLASSES // world + 1}


@pytest.mark.parametrize("world", WORLDS)
def test_a_sample_of_the_classes_has_the_batchs_own(found: Found, world: int) -> None:
    """And exactly as many others as asked for, the same on any number of processes but for rounding; rate 1 is the head."""
    every, tenth = ([of_rank["sampled"][rate] for of_rank in found[world]] for rate in (1.0, 0.1))
    torch.manual_seed(0)
    model = classifier(pycls.create_head("arcface", 6, 1000, scale=8.0))
    chosen = []
    for step in range(3):
        x = torch.randn(BATCH, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        y = torch.arange(BATCH) * 83 + step
        model.zero_grad()
        loss = model(x, y).loss
        loss.backward()
        close(torch.stack([of_rank["losses"][step] for of_rank in every]).mean(), loss.detach(), "rate 1.0")
        close(every[0]["touched"][step], model.head.weight.grad, "gradient at rate 1.0")
        rows = tenth[0]["touched"][step].abs().sum(dim=1) > 0
        assert rows[y].all() and abs(int(rows.sum()) - 100) <= world
        assert float(torch.stack([of_rank["losses"][step] for of_rank in tenth]).mean()) < float(loss.detach())
        chosen.append(rows)
    assert not torch.equal(chosen[0], chosen[1]), "drawn again at each step"
    assert int((chosen[0] & chosen[1]).sum()) < 30, "independently"


def test_positives_are_kept_even_where_they_are_more_than_asked_for() -> None:
    """One process: the sampled loss is that of a head which has the sampled classes alone."""
    torch.manual_seed(0)
    head = pycls.create_head("cosface", 5, 40).double()
    x, y = torch.randn(20, 5, dtype=torch.float64), torch.arange(20)
    weight = head.weight.detach().clone()
    assert isinstance(head, Head)
    shard_classes(head, ClassShard(40, sample_rate=0.1, draw=draw))
    loss = head(x, y).loss
    loss.backward()
    alone = pycls.create_head("cosface", 5, 20).double()
    with torch.no_grad():
        alone.weight.copy_(weight[:20])
    close(loss.detach(), alone(x, y).loss.detach(), "loss")
    assert torch.equal(head.weight.grad.abs().sum(dim=1) > 0, torch.arange(40) < 20)


@pytest.mark.parametrize("name", ["smooth_topk", "hard_topk"])
def test_a_criterion_of_all_logits_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.*HEAD.PARALLEL.*cross_entropy"):
        shard_classes(pycls.create_head(name, 4, 10), ClassShard(10))


def test_what_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(ValueError, match=r"3 classes.*4 processes"):
        ClassShard(3, 0, 4)
    with pytest.raises(ValueError, match=r"\(0, 1\], not 0"):
        ClassShard(3, sample_rate=0.0, draw=draw)
    head = pycls.create_head("softmax", 4, 10)
    head.criterion = CrossEntropy(0.1)
    with pytest.raises(ValueError, match="SAMPLE_RATE must be 1"):
        shard_classes(head, ClassShard(10, sample_rate=0.5, draw=draw))
