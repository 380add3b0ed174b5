"""What several backbones are built of: checks of their arguments, layers, initial weights."""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

from torch import Tensor, nn

SMALLEST_SIDE = 8
"""No backbone here promises anything below 8 x 8 pixels: the smallest real images (scikit-learn's digits) have that."""

NormFactory = Callable[[int], nn.Module]
"""Number of channels -> a normalisation layer for them."""

Activation = Literal["", "relu", "silu", "swish", "gelu"]
"""Names of activation functions, as pycls spells them; swish is silu, and empty stands for the net's own."""


class Layers(NamedTuple):
    """What a net makes its normalisation and its activation layers with."""

    norm: NormFactory
    act: Callable[[], nn.Module]


def choose_layers(bn_eps: float, bn_mom: float, activation_fun: Activation = "", own: Activation = "relu") -> Layers:
    """Batch norm with these settings, and the activation function of this name, or ``own`` for the empty one.

    Raises:
        ValueError: for an unknown activation function.
    """
    known: dict[str, Callable[[], nn.Module]] = {
        "relu": partial(nn.ReLU, inplace=True),
        "silu": nn.SiLU,
        "swish": nn.SiLU,
        "gelu": nn.GELU,
    }
    name = activation_fun or own
    if name not in known:
        raise ValueError(f"there is no activation function {name!r}; there are: {', '.join(known)}")
    return Layers(batch_norm(bn_eps, bn_mom), known[name])


def check_images(net: str, in_channels: int, image_size: int, smallest: int = SMALLEST_SIDE, remedy: str = "") -> None:
    """Raises ``ValueError`` if a net cannot work on images [in_channels, image_size, image_size].

    Args:
        net: what the net is called in the message.
        in_channels: channels of an image; any number from 1 up will do.
        image_size: side of an image in pixels.
        smallest: the smallest side that leaves at least one pixel after the net's last stride.
        remedy: the end of the message: what takes smaller images.
    """
    if in_channels < 1:
        raise ValueError(f"{net} needs images of at least 1 channel, these have {in_channels}")
    if image_size < smallest:
        message = f"{net} needs images of at least {smallest} x {smallest}, these are {image_size} x {image_size}"
        raise ValueError(f"{message}; {remedy}" if remedy else message)


def expect_images(images: Tensor, in_channels: int, image_size: int) -> None:
    """Raises ``ValueError`` unless ``images`` is [N, in_channels, image_size, image_size].

    For nets that end in a fully connected layer over all pixels and so take one size only.
    """
    want = (in_channels, image_size, image_size)
    if images.shape[1:] != want:
        raise ValueError(f"this net was built for images of shape {want}, these have shape {tuple(images.shape[1:])}")


def batch_norm(eps: float, mom: float) -> NormFactory:
    """Number of channels -> ``nn.BatchNorm2d`` with this epsilon and share of the newest batch in its statistics."""
    return partial(nn.BatchNorm2d, eps=eps, momentum=mom)


def conv(w_in: int, w_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size at stride 1. It has no bias: batch norm comes after."""
    return nn.Conv2d(w_in, w_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


class SqueezeExcitation(nn.Module):
    """Channels times a gate in 0..1 that two 1 x 1 convolutions make of their means (Hu et al., CVPR 2018).

    ``w_se`` channels in between, with the net's activation function.
    """

    def __init__(self, w_in: int, w_se: int, act: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.f_ex = nn.Sequential(nn.Conv2d(w_in, w_se, 1), act(), nn.Conv2d(w_se, w_in, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """[N, w_in, H, W] -> [N, w_in, H, W]."""
        return x * self.f_ex(x.mean((2, 3), keepdim=True))


def prelu_convs(w_in: int, w_out: int, kernel: int, count: int, norm: NormFactory | None = None) -> list[nn.Module]:
    """``count`` size-keeping convolutions with bias, each followed by PReLU (one slope) and, if given, ``norm``.

    Their weights start so that the signal keeps its size through PReLU (He et al. 2015, eq. 15): with PyTorch's own,
    smaller ones the biases drown the image after six layers.
    """
    layers: list[nn.Module] = []
    for i in range(count):
        layer = nn.Conv2d(w_out if i else w_in, w_out, kernel, padding=kernel // 2)
        nn.init.kaiming_normal_(layer.weight, a=0.25)  # PReLU's first slope
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        layers += [layer, nn.PReLU()]
        if norm is not None:
            layers.append(norm(w_out))
    return layers


def global_average(maps: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C]. A plain mean: unlike adaptive pooling, its gradient on CUDA is deterministic."""
    return maps.mean((2, 3))


def init_he_fan_out(net: nn.Module) -> None:
    """He-normal weights by fan-out in every convolution, 1 and 0 in every batch norm.

    The variance is 2 / (k^2 w_out) for grouped convolutions too, as in pycls (He et al. 2015, eq. 14).
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, std=(2.0 / fan_out) ** 0.5)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
