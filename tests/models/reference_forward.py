"""pycls's forward passes stated once more: functions of images and of a state dict under pycls's names, and nothing else.

Depths and shortcuts are read off the names, widths and groups off the shapes, so that a wrong name or shape shows. What
neither tells (strides, heads, epsilon) is an argument.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class Net:
    """Weights by pycls's names, and the mode."""

    weights: Mapping[str, Tensor]
    training: bool = False
    act: Callable[[Tensor], Tensor] = F.relu
    eps: float = 1e-5

    def has(self, prefix: str) -> bool:
        return any(name.startswith(f"{prefix}.") for name in self.weights)

    def conv(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        groups = x.shape[1] // weight.shape[1]
        return F.conv2d(x, weight, self.weights.get(f"{name}.bias"), stride, weight.shape[-1] // 2, groups=groups)

    def bn(self, x: Tensor, name: str) -> Tensor:
        mean, var = (self.weights[f"{name}.running_{which}"].clone() for which in ("mean", "var"))
        return F.batch_norm(x, mean, var, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], self.training,
                            eps=self.eps)  # fmt: skip

    def ln(self, x: Tensor, name: str) -> Tensor:
        mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
        return (x - mean) / (var + self.eps).sqrt() * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.weights[f"{name}.weight"].t() + self.weights[f"{name}.bias"]

    def se(self, x: Tensor, name: str) -> Tensor:
        gate = x.mean((2, 3), keepdim=True)
        gate = self.conv(self.act(self.conv(gate, f"{name}.f_ex.0")), f"{name}.f_ex.2")
        return x * torch.sigmoid(gate)

    def blocks(self) -> list[tuple[str, bool]]:
        """Each block's prefix in order, and whether it is the first of its stage."""
        found = {match[1] for name in self.weights if (match := re.match(r"(s\d+\.b\d+)\.", name))}
        order = sorted(found, key=lambda prefix: [int(n) for n in re.findall(r"\d+", prefix)])
        return [(prefix, prefix.endswith(".b1")) for prefix in order]


def anynet(net: Net, x: Tensor, strides: list[int], stem: str, block: str, stride_1x1: bool = False) -> Tensor:
    """AnyNet, RegNet and ResNet: logits [N, K]. ``strides``: of each stage."""
    stem_stride = 1 if stem == "res_stem_cifar" else 2
    x = net.act(net.bn(net.conv(x, "stem.conv", stem_stride), "stem.bn"))
    if stem == "res_stem_in":
        x = F.max_pool2d(x, 3, 2, 1)
    for prefix, is_first in net.blocks():
        stride = strides[int(prefix[1 : prefix.index(".")]) - 1] if is_first else 1
        if block == "vanilla_block":
            x = net.act(net.bn(net.conv(x, f"{prefix}.a", stride), f"{prefix}.a_bn"))
            x = net.act(net.bn(net.conv(x, f"{prefix}.b"), f"{prefix}.b_bn"))
            continue
        f = f"{prefix}.f"
        if block == "res_basic_block":
            y = net.act(net.bn(net.conv(x, f"{f}.a", stride), f"{f}.a_bn"))
            y = net.bn(net.conv(y, f"{f}.b"), f"{f}.b_bn")
        else:
            strides_ab = (stride, 1) if stride_1x1 else (1, stride)
            y = net.act(net.bn(net.conv(x, f"{f}.a", strides_ab[0]), f"{f}.a_bn"))
            y = net.act(net.bn(net.conv(y, f"{f}.b", strides_ab[1]), f"{f}.b_bn"))
            if net.has(f"{f}.se"):
                y = net.se(y, f"{f}.se")
            y = net.bn(net.conv(y, f"{f}.c"), f"{f}.c_bn")
        if block == "res_bottleneck_linear_block":
            x = x + y if stride == 1 and x.shape == y.shape else y
            continue
        shortcut = net.bn(net.conv(x, f"{prefix}.proj", stride), f"{prefix}.bn") if net.has(f"{prefix}.proj") else x
        assert shortcut.shape == y.shape
        x = net.act(shortcut + y)
    if net.has("head.conv"):
        x = net.act(net.bn(net.conv(x, "head.conv"), "head.bn"))
    return net.linear(x.mean((2, 3)), "head.fc")


def effnet(net: Net, x: Tensor, strides: list[int]) -> Tensor:
    """EfficientNet without dropping: logits [N, K]."""
    x = net.act(net.bn(net.conv(x, "stem.conv", 2), "stem.bn"))
    for prefix, is_first in net.blocks():
        stride = strides[int(prefix[1 : prefix.index(".")]) - 1] if is_first else 1
        y = net.act(net.bn(net.conv(x, f"{prefix}.exp"), f"{prefix}.exp_bn")) if net.has(f"{prefix}.exp") else x
        y = net.act(net.bn(net.conv(y, f"{prefix}.dwise", stride), f"{prefix}.dwise_bn"))
        y = net.se(y, f"{prefix}.se")
        y = net.bn(net.conv(y, f"{prefix}.lin_proj"), f"{prefix}.lin_proj_bn")
        x = x + y if stride == 1 and x.shape[1] == y.shape[1] else y
    x = net.act(net.bn(net.conv(x, "head.conv"), "head.conv_bn"))
    return net.linear(x.mean((2, 3)), "head.fc")


def vit(net: Net, x: Tensor, heads: int, strides: list[int]) -> Tensor:
    """ViT: logits [N, K]. ``strides``: of the convolutional stem; empty for patches."""
    if strides:
        for i, stride in enumerate(strides[:-1]):
            x = torch.relu(net.bn(net.conv(x, f"stem.cstem{i}_conv", stride), f"stem.cstem{i}_bn"))
        x = net.conv(x, "stem.cstem_last_conv", strides[-1])
    else:
        patch = net.weights["stem.patchify.weight"]
        x = F.conv2d(x, patch, net.weights["stem.patchify.bias"], stride=patch.shape[-1])
    x = x.reshape(x.shape[0], x.shape[1], -1).permute(0, 2, 1)
    token = net.weights.get("class_token")
    if token is not None:
        x = torch.cat([token.expand(len(x), 1, -1), x], 1)
    x = x + net.weights["pos_embedding"].transpose(0, 1)  # [L, 1, D] in pycls
    i = 0
    while net.has(block := f"encoder.block_{i}"):
        attention = f"{block}.self_attention.block"
        weight, bias = (net.weights[f"{attention}.in_proj_{kind}"] for kind in ("weight", "bias"))
        y = net.ln(x, f"{block}.ln_1") @ weight.t() + bias
        mixed = []
        for q, k, v in zip(*(part.chunk(heads, -1) for part in y.chunk(3, -1)), strict=True):
            mixed.append(torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, -1) @ v)
        x = x + net.linear(torch.cat(mixed, -1), f"{attention}.out_proj")
        y = F.gelu(net.linear(net.ln(x, f"{block}.ln_2"), f"{block}.mlp_block.linear_1"))
        x = x + net.linear(y, f"{block}.mlp_block.linear_2")
        i += 1
    assert i > 0
    x = net.ln(x, "encoder.ln")
    return net.linear(x.mean(1) if token is None else x[:, 0], "head.head_fc")


def randomise(model: nn.Module) -> None:
    """Statistics and gains of a trained net's kind, so that nothing is hidden by a 0 or a 1."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.normal_(module.bias, std=0.02)
    for key, parameter in model.named_parameters():
        if "class_token" in key or "pos_embedding" in key:
            nn.init.normal_(parameter, std=0.5)
