"""Activations computed again: the same gradients and statistics, and less memory."""

import copy

import pytest
import torch
from test_backbones import OURS, build  # type: ignore[import-not-found]
from torch import Tensor, nn

from pycls.models.recompute import blocks_of, recompute_blocks

WITHOUT_BLOCKS = {"lenet5", "lenetspp", "lsoftmax_fig2", "lsoftmax_mnist"}
RANDOM: dict[str, dict[str, object]] = {
    "effnet": {"dc_ratio": 0.4, "dropout_ratio": 0.2},
    "wrn": {"dropout": 0.3},
    "densenet": {"dropout": 0.3},
}
"""Options that let a net draw random numbers."""

WITH_BLOCKS = sorted(set(OURS) - WITHOUT_BLOCKS)


def small(name: str) -> nn.Module:
    return build(name, 1, 32, **RANDOM.get(name, {}), **({"depth": 8} if name == "resnet" else {}))


def two_steps(net: nn.Module) -> dict[str, Tensor]:
    """Everything there is after two steps, the second with its gradients."""
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(2):
        torch.manual_seed(step)
        optimizer.zero_grad()
        net(torch.randn(6, 1, 32, 32)).square().mean().backward()
        optimizer.step()
    return {**net.state_dict(), **{f"{name}.grad": p.grad for name, p in net.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize("name", WITH_BLOCKS)
def test_the_training_is_the_same(name: str) -> None:
    """To the bit, on a CPU: gradients, weights, and the running statistics, which the second pass must not move again."""
    plain, again = small(name), small(name)
    recompute_blocks(again)
    expected, found = two_steps(plain), two_steps(again)
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize("name", sorted(WITHOUT_BLOCKS))
def test_a_net_without_blocks_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="has no blocks"):
        recompute_blocks(build(name, 1, 32))


def kept(net: nn.Module, images: Tensor) -> int:
    """Numbers that a forward pass keeps for the backward pass, but for the weights."""
    own = {parameter.data_ptr() for parameter in net.parameters()}
    seen: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        if value.data_ptr() not in own:
            seen[value.data_ptr()] = value.numel()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        features = net(images)
    assert features.requires_grad
    return sum(seen.values())


def test_it_keeps_less() -> None:
    plain = build("resnet", 1, 32, depth=20).train()
    again = copy.deepcopy(plain)
    recompute_blocks(again)
    images = torch.randn(2, 1, 32, 32)
    assert kept(again, images) < 0.35 * kept(plain, images)


def test_a_copy_is_a_net_of_its_own() -> None:
    """A moving average is one."""
    net = build("resnet", 1, 32, depth=8).train()
    recompute_blocks(net)
    average = copy.deepcopy(net).eval()
    before = average(torch.ones(1, 1, 32, 32))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert torch.equal(average(torch.ones(1, 1, 32, 32)), before) and before.abs().max() > 0
    assert average.s1.b1.training is False and net.s1.b1.training is True  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v2", "vit_b_16"])
def test_blocks_of_other_packages(name: str) -> None:
    """They are found by how nets are built; all but stems and last layers are in blocks."""
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        net = models.get_model(name, weights=None)
    blocks = blocks_of(net)
    count = sum(p.numel() for block in blocks for p in block.parameters())
    assert len(blocks) >= 8 and len({id(p) for block in blocks for p in block.parameters()}) == sum(
        len(list(block.parameters())) for block in blocks)  # fmt: skip
    assert count > 0.5 * sum(p.numel() for p in net.parameters())


