"""What residual nets are built of: stems, transforms and blocks, with pycls's names (ResNet, AnyNet and RegNet)."""

from torch import Tensor, nn

from pycls.models.layers.blocks import Layers, SqueezeExcitation, conv


class BasicTransform(nn.Module):
    """3 x 3, batch norm, activation, 3 x 3, batch norm."""

    def __init__(self, w_in: int, w_out: int, stride: int, layers: Layers) -> None:
        super().__init__()
        self.a = conv(w_in, w_out, 3, stride)
        self.a_bn = layers.norm(w_out)
        self.a_af = layers.act()
        self.b = conv(w_out, w_out, 3)
        self.b_bn = layers.norm(w_out)

    @property
    def final_bn(self) -> nn.Module:
        return self.b_bn

    def forward(self, x: Tensor) -> Tensor:
        """[N, w_in, H, W] -> [N, w_out, H / stride, W / stride]."""
        return self.b_bn(self.b(self.a_af(self.a_bn(self.a(x)))))


class BottleneckTransform(nn.Module):
    """1 x 1 to ``w_b`` channels, 3 x 3 in ``groups``, 1 x 1 to ``w_out``; batch norm after each, activations between.

    Args:
        w_in: channels that come in.
        w_out: channels that go out.
        stride: of the 3 x 3, or of the first 1 x 1 with ``stride_1x1`` (the ResNet paper).
        layers: the normalisation and the activation.
        w_b: channels in between.
        groups: of the 3 x 3.
        w_se: channels of a squeeze-and-excitation after the 3 x 3; 0 for none.
        stride_1x1: where the stride is.
    """

    def __init__(
        self,
        w_in: int,
        w_out: int,
        stride: int,
        layers: Layers,
        w_b: int,
        groups: int,
        w_se: int = 0,
        stride_1x1: bool = False,
    ) -> None:
        super().__init__()
        a_stride, b_stride = (stride, 1) if stride_1x1 else (1, stride)
        self.a = conv(w_in, w_b, 1, a_stride)
        self.a_bn = layers.norm(w_b)
        self.a_af = layers.act()
        self.b = conv(w_b, w_b, 3, b_stride, groups)
        self.b_bn = layers.norm(w_b)
        self.b_af = layers.act()
        self.se = SqueezeExcitation(w_b, w_se, layers.act) if w_se else None
        self.c = conv(w_b, w_out, 1)
        self.c_bn = layers.norm(w_out)

    @property
    def final_bn(self) -> nn.Module:
        return self.c_bn

    def forward(self, x: Tensor) -> Tensor:
        """[N, w_in, H, W] -> [N, w_out, H / stride, W / stride]."""
        x = self.a_af(self.a_bn(self.a(x)))
        x = self.b_af(self.b_bn(self.b(x)))
        if self.se is not None:
            x = self.se(x)
        return self.c_bn(self.c(x))


class ResBlock(nn.Module):
    """act(x + f(x)); x goes through a 1 x 1 convolution and batch norm where f changes its shape."""

    def __init__(self, w_in: int, w_out: int, stride: int, layers: Layers, f: nn.Module) -> None:
        super().__init__()
        self.has_proj = w_in != w_out or stride != 1
        if self.has_proj:
            self.proj = conv(w_in, w_out, 1, stride)
            self.bn = layers.norm(w_out)
        self.f = f
        self.af = layers.act()

    def forward(self, x: Tensor) -> Tensor:
        """[N, w_in, H, W] -> [N, w_out, H / stride, W / stride]."""
        shortcut = self.bn(self.proj(x)) if self.has_proj else x
        return self.af(shortcut + self.f(x))


class LinearBlock(nn.Module):
    """x + f(x) without an activation after it, and f(x) alone where f changes the shape (MobileNetV2, RegNetZ)."""

    def __init__(self, w_in: int, w_out: int, stride: int, f: nn.Module) -> None:
        super().__init__()
        self.has_skip = w_in == w_out and stride == 1
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        """[N, w_in, H, W] -> [N, w_out, H / stride, W / stride]."""
        return x + self.f(x) if self.has_skip else self.f(x)


class VanillaBlock(nn.Module):
    """3 x 3, batch norm, activation, twice: no shortcut."""

    def __init__(self, w_in: int, w_out: int, stride: int, layers: Layers) -> None:
        super().__init__()
        self.a = conv(w_in, w_out, 3, stride)
        self.a_bn = layers.norm(w_out)
        self.a_af = layers.act()
        self.b = conv(w_out, w_out, 3)
        self.b_bn = layers.norm(w_out)
        self.b_af = layers.act()

    def forward(self, x: Tensor) -> Tensor:
        """[N, w_in, H, W] -> [N, w_out, H / stride, W / stride]."""
        return self.b_af(self.b_bn(self.b(self.a_af(self.a_bn(self.a(x))))))


class Stem(nn.Sequential):
    """A convolution with batch norm and activation, and, with ``pool``, 3 x 3 max pooling at stride 2."""

    def __init__(self, w_in: int, w_out: int, kernel: int, stride: int, layers: Layers, pool: bool = False) -> None:
        super().__init__()
        self.conv = conv(w_in, w_out, kernel, stride)
        self.bn = layers.norm(w_out)
        self.af = layers.act()
        if pool:
            self.pool = nn.MaxPool2d(3, 2, padding=1)


def zero_final_gammas(net: nn.Module) -> None:
    """Starts the last batch norm of each residual transform at 0 (Goyal et al. 2017, section 5.1)."""
    for module in net.modules():
        if isinstance(module, BasicTransform | BottleneckTransform):
            nn.init.zeros_(module.final_bn.weight)  # type: ignore[arg-type]
