"""The operations that augmentation policies are made of, on batches: each image with its own value.

All take float32 ``[n, C, H, W]`` of whole numbers 0..255 and values float32 ``[n]``, and give the same shape within 0..255;
what they give is cut down to bytes afterwards. Their meanings are Pillow's, which the papers' code and torchvision share
(whose functions take one value for a whole batch); geometric ones interpolate bilinearly, and what comes from outside is
grey (128). What an image becomes depends on nothing but the image and its value.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

FILL = 128.0
GREY = (0.299, 0.587, 0.114)

Operation = Callable[[Tensor, Tensor], Tensor]


def grey(images: Tensor) -> Tensor:
    """Luma (ITU-R 601-2), ``[n, 1, H, W]``; images of one channel are their own."""
    if images.shape[1] != 3:
        return images[:, :1]
    red, green, blue = images.split(1, dim=1)
    return (red * GREY[0] + green * GREY[1] + blue * GREY[2]).round()


def _blend(images: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    """``others + factor * (images - others)``: factor 1 leaves an image as it is."""
    return torch.lerp(others.expand_as(images), images, factors[:, None, None, None]).clamp_(0, 255)


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Against black."""
    return _blend(images, torch.zeros_like(images), factors)


def color(images: Tensor, factors: Tensor) -> Tensor:
    """Saturation: against the grey image."""
    return _blend(images, grey(images), factors)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Against the mean of the grey image."""
    return _blend(images, grey(images).mean(dim=(2, 3), keepdim=True).round(), factors)


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Against the smoothed image; the outermost pixels stay."""
    if min(images.shape[2:]) < 3:
        return images
    channels = images.shape[1]
    kernel = images.new_ones(channels, 1, 3, 3)
    kernel[:, :, 1, 1] = 5
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = F.conv2d(images, kernel / 13, groups=channels).round_()
    return _blend(images, smooth, factors)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keeps the highest bits, up to 8; at least one, as in pycls, where EfficientNet's code makes some images black."""
    step = 2.0 ** (8 - bits.clamp(min=1))[:, None, None, None]
    return torch.floor(images / step) * step


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Inverts what is at or above the threshold."""
    return torch.where(images < thresholds[:, None, None, None], images, 255 - images)


def solarize_add(images: Tensor, values: Tensor) -> Tensor:
    """Brightens what is below 128 by the value."""
    return torch.where(images < 128, (images + values[:, None, None, None]).clamp_(0, 255), images)


def invert(images: Tensor, _: Tensor) -> Tensor:
    """255 - x."""
    return 255 - images


def autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """Each channel stretched to 0..255; one of a single level stays."""
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    scale = 255 / (high - low)
    return torch.where(high > low, ((images - low) * scale).clamp_(0, 255), images)


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Each channel's histogram made flat, in whole numbers as Pillow does it."""
    planes = images.flatten(0, 1).flatten(1).long()
    histogram = torch.zeros(len(planes), 256, dtype=torch.int64, device=images.device)
    histogram.scatter_add_(1, planes, torch.ones_like(planes))
    last = histogram.gather(1, planes.amax(dim=1, keepdim=True))
    step = (planes.shape[1] - last).div(255, rounding_mode="floor")
    below = histogram.cumsum(1) - histogram + step.div(2, rounding_mode="floor")
    table = below.div(step.clamp(min=1), rounding_mode="floor").clamp_(0, 255)
    return torch.where(step > 0, table.gather(1, planes), planes).to(images.dtype).view_as(images)


def identity(images: Tensor, _: Tensor) -> Tensor:
    """As it is."""
    return images


# --- geometry: each output pixel (x, y) shows what is at (a x + b y + c, d x + e y + f)


def _warp(images: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor, f: Tensor) -> Tensor:
    """Lengths are in pixels from the image's top left corner, pixel centres at halves."""
    height, width = images.shape[2:]
    x = torch.arange(width, device=images.device, dtype=images.dtype) + 0.5
    y = torch.arange(height, device=images.device, dtype=images.dtype)[:, None] + 0.5
    a, b, c, d, e, f = (v[:, None, None] for v in (a, b, c, d, e, f))
    grid = torch.stack(((a * x + b * y + c) * (2 / width) - 1, (d * x + e * y + f) * (2 / height) - 1), dim=3)
    return F.grid_sample(images - FILL, grid, align_corners=False).add_(FILL).round_().clamp_(0, 255)


def shear_x(images: Tensor, values: Tensor) -> Tensor:
    """Rows shifted by the value times their height, about the top left corner."""
    one, zero = torch.ones_like(values), torch.zeros_like(values)
    return _warp(images, one, values, zero, zero, one, zero)


def shear_y(images: Tensor, values: Tensor) -> Tensor:
    """Columns shifted by the value times their place, about the top left corner."""
    one, zero = torch.ones_like(values), torch.zeros_like(values)
    return _warp(images, one, zero, zero, values, one, zero)


def translate_x(images: Tensor, values: Tensor) -> Tensor:
    """By the value times the width."""
    return shift_x(images, values * images.shape[3])


def translate_y(images: Tensor, values: Tensor) -> Tensor:
    """By the value times the height."""
    return shift_y(images, values * images.shape[2])


def shift_x(images: Tensor, values: Tensor) -> Tensor:
    """By so many pixels."""
    one, zero = torch.ones_like(values), torch.zeros_like(values)
    return _warp(images, one, zero, values, zero, one, zero)


def shift_y(images: Tensor, values: Tensor) -> Tensor:
    """By so many pixels."""
    one, zero = torch.ones_like(values), torch.zeros_like(values)
    return _warp(images, one, zero, zero, zero, one, values)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Counter-clockwise about the centre."""
    cos, sin = torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))
    x, y = images.shape[3] / 2, images.shape[2] / 2
    return _warp(images, cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


OPERATIONS: dict[str, Operation] = {
    operation.__name__: operation
    for operation in (
        identity, autocontrast, equalize, invert, brightness, color, contrast, sharpness, posterize, solarize, solarize_add,
        rotate, shear_x, shear_y, translate_x, translate_y, shift_x, shift_y,
    )
}  # fmt: skip
"""By name."""


def apply(pixels: Tensor, names: list[str], values: Tensor) -> Tensor:
    """One operation on each image of a batch.

    Args:
        pixels: uint8 ``[n, C, H, W]`` in any memory order; not changed.
        names: of ``OPERATIONS``, one an image.
        values: float32 ``[n]`` on the CPU.

    Returns:
        uint8 of the same shape and memory order.
    """
    result = pixels.clone()
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        if name != "identity":
            rows.setdefault(name, []).append(row)
    for name, of_name in sorted(rows.items()):
        where = torch.tensor(of_name)
        here = where.to(pixels.device, non_blocking=True)
        some = pixels.index_select(0, here).to(torch.float32, memory_format=torch.contiguous_format)
        made = OPERATIONS[name](some, values[where].to(pixels.device, non_blocking=True))
        result.index_copy_(0, here, made.to(torch.uint8).contiguous())
    return result
