"""The vision transformer (Dosovitskiy et al., ICLR 2021), with patches or convolutions as its stem (Xiao et al. 2021)."""

from math import prod
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pycls.models.layers.blocks import batch_norm, check_images, conv, expect_images
from pycls.ranges import COUNT
from pycls.registry import MODELS


class SelfAttention(nn.Module):
    """Multi-head self-attention; queries, keys and values come from one linear layer, in this order."""

    def __init__(self, hidden_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attn_proj = nn.Linear(hidden_dim, 3 * hidden_dim)
        self.out_proj = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, D] -> [N, L, D]."""
        n, length, dim = x.shape
        heads = self.attn_proj(x).view(n, length, 3, self.num_heads, dim // self.num_heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(mixed.transpose(1, 2).reshape(n, length, dim))

    def complexity(self, input_shape: tuple[int, ...]) -> tuple[int, int]:
        """Multiply-adds and activations: both linear layers, and the two products with the weights [L, L] of each head."""
        _, length, dim = input_shape
        linear = length * (4 * dim * dim + 4 * dim)
        products = 2 * length * length * dim
        return linear + products, 5 * length * dim + self.num_heads * length * length


class MLPBlock(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, hidden_dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(hidden_dim, mlp_dim)
        self.af = nn.GELU()
        self.linear_2 = nn.Linear(mlp_dim, hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, D] -> [N, L, D]."""
        return self.linear_2(self.af(self.linear_1(x)))


class EncoderBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, hidden_dim: int, num_heads: int, mlp_dim: int, ln_eps: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(hidden_dim, ln_eps)
        self.self_attention = SelfAttention(hidden_dim, num_heads)
        self.ln_2 = nn.LayerNorm(hidden_dim, ln_eps)
        self.mlp_block = MLPBlock(hidden_dim, mlp_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, D] -> [N, L, D]."""
        x = x + self.self_attention(self.ln_1(x))
        return x + self.mlp_block(self.ln_2(x))


@MODELS.register("vit")
class ViT(nn.Module):
    """A vision transformer; the defaults are ViT-B/16's.

    Patches, a class token (or none), learned positions, blocks of attention and MLP, a last layer norm; the features are
    the class token, or the mean over patches. With ``stem_type: conv`` a few convolutions take the place of the patches'
    linear layer (Early Convolutions Help Transformers See Better, NeurIPS 2021). Options and names are pycls's.

    Args:
        in_channels: channels of an image.
        image_size: side of an image in pixels, a multiple of patch_size. The net takes this size only.
        bn_eps: epsilon of the convolutional stem's batch norm.
        bn_mom: its share of the newest batch in its running statistics.
        ln_eps: layer norm's epsilon.
        patch_size: side of a patch in pixels.
        stem_type: patchify (one convolution of patch_size at stride patch_size) or conv.
        c_stem_kernels: conv: side of each convolution's kernel; all but the last are 3, as in pycls.
        c_stem_strides: conv: their strides, whose product is patch_size.
        c_stem_dims: conv: their channels, the last one hidden_dim.
        num_layers: blocks.
        num_heads: heads of the attention, a divisor of hidden_dim.
        hidden_dim: width, which is D.
        mlp_dim: width inside the MLP.
        classifier_type: features are the class token (token) or the mean over patches (pooled).

    Raises:
        ValueError: options that contradict each other, or an image whose side is no multiple of patch_size.
    """

    def __init__(
        self,
        in_channels: int = 3,
        image_size: int = 224,
        bn_eps: float = 1e-5,
        bn_mom: float = 0.1,
        ln_eps: float = 1e-5,
        patch_size: Annotated[int, COUNT] = 16,
        stem_type: Literal["patchify", "conv"] = "patchify",
        c_stem_kernels: Annotated[tuple[int, ...], COUNT] = (),
        c_stem_strides: Annotated[tuple[int, ...], COUNT] = (),
        c_stem_dims: Annotated[tuple[int, ...], COUNT] = (),
        num_layers: Annotated[int, COUNT] = 12,
        num_heads: Annotated[int, COUNT] = 12,
        hidden_dim: Annotated[int, COUNT] = 768,
        mlp_dim: Annotated[int, COUNT] = 3072,
        classifier_type: Literal["token", "pooled"] = "token",
    ) -> None:
        super().__init__()
        check_images("vit", in_channels, image_size, max(8, patch_size), "VIT.PATCH_SIZE sets the patches")
        if image_size % patch_size:
            raise ValueError(f"vit: the side of an image must be a multiple of patch_size {patch_size}, not {image_size}")
        if hidden_dim % num_heads:
            raise ValueError(f"vit: hidden_dim {hidden_dim} cannot be shared by {num_heads} heads")
        if classifier_type not in ("token", "pooled"):
            raise ValueError(f"vit: classifier_type is token or pooled, not {classifier_type!r}")
        self.in_channels, self.image_size, self.feature_dim = in_channels, image_size, hidden_dim
        self.stem = nn.Sequential()
        if stem_type == "patchify":
            self.stem.add_module("patchify", nn.Conv2d(in_channels, hidden_dim, patch_size, patch_size))
        elif stem_type == "conv":
            _check_conv_stem(c_stem_kernels, c_stem_strides, c_stem_dims, patch_size, hidden_dim)
            norm, w_in = batch_norm(bn_eps, bn_mom), in_channels
            for i, (w_out, stride) in enumerate(zip(c_stem_dims[:-1], c_stem_strides[:-1], strict=True)):
                self.stem.add_module(f"cstem{i}_conv", conv(w_in, w_out, 3, stride))
                self.stem.add_module(f"cstem{i}_bn", norm(w_out))
                self.stem.add_module(f"cstem{i}_af", nn.ReLU(inplace=True))
                w_in = w_out
            kernel = c_stem_kernels[-1]
            last = nn.Conv2d(w_in, hidden_dim, kernel, c_stem_strides[-1], padding=kernel // 2)
            self.stem.add_module("cstem_last_conv", last)
        else:
            raise ValueError(f"vit: stem_type is patchify or conv, not {stem_type!r}")
        has_token = classifier_type == "token"
        length = (image_size // patch_size) ** 2 + has_token
        self.class_token = nn.Parameter(torch.zeros(1, 1, hidden_dim)) if has_token else None
        self.pos_embedding = nn.Parameter(torch.zeros(1, length, hidden_dim))
        self.encoder = nn.Sequential()
        for i in range(num_layers):
            self.encoder.add_module(f"block_{i}", EncoderBlock(hidden_dim, num_heads, mlp_dim, ln_eps))
        self.encoder.add_module("ln", nn.LayerNorm(hidden_dim, ln_eps))
        self._init_weights()

    def _init_weights(self) -> None:
        """pycls's: truncated normal patches, Xavier with q, k and v apart, normal positions; else PyTorch's own."""
        for name, layer in self.stem.named_children():
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                fan_in = layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
                if name == "patchify":
                    nn.init.trunc_normal_(layer.weight, std=fan_in**-0.5)
                else:
                    nn.init.normal_(layer.weight, std=(2 / layer.out_channels) ** 0.5)
                nn.init.zeros_(layer.bias)
        for module in self.modules():
            if isinstance(module, SelfAttention):
                nn.init.xavier_uniform_(module.attn_proj.weight, gain=2**0.5)
                nn.init.zeros_(module.attn_proj.bias)
                nn.init.zeros_(module.out_proj.bias)
            elif isinstance(module, MLPBlock):
                for linear in (module.linear_1, module.linear_2):
                    nn.init.xavier_uniform_(linear.weight)
                    nn.init.normal_(linear.bias, std=1e-6)
        nn.init.normal_(self.pos_embedding, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Images float [N, C, H, W], of the size the net was built for -> features [N, hidden_dim]."""
        expect_images(images, self.in_channels, self.image_size)
        x = self.stem(images).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.encoder(x + self.pos_embedding)
        return x.mean(1) if self.class_token is None else x[:, 0]


def _check_conv_stem(
    kernels: tuple[int, ...], strides: tuple[int, ...], dims: tuple[int, ...], patch_size: int, hidden_dim: int
) -> None:
    """Raises ``ValueError`` where the convolutional stem does not make one position of each patch."""
    if not dims or not len(kernels) == len(strides) == len(dims):
        counts = f"{len(kernels)}, {len(strides)} and {len(dims)}"
        raise ValueError(f"vit: c_stem_kernels, c_stem_strides and c_stem_dims have an entry a convolution, not {counts}")
    if kernels[-1] % 2 == 0 or any(kernel != 3 for kernel in kernels[:-1]):
        raise ValueError(f"vit: c_stem_kernels are 3, and the last one any odd number, not {list(kernels)}")
    if prod(strides) != patch_size or dims[-1] != hidden_dim:
        raise ValueError(
            f"vit: the product of c_stem_strides is patch_size {patch_size} and the last of c_stem_dims hidden_dim "
            f"{hidden_dim}, not {prod(strides)} and {dims[-1]}"
        )
