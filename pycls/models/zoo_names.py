"""Architectures by name, those of the Model Zoo: a backbone and its arguments."""

from typing import Any, NamedTuple


class Architecture(NamedTuple):
    """A net that has a name.

    Attributes:
        backbone: its family, a name in the registry of models.
        options: the family's arguments that make it this net.
        image_size: side in pixels of the images that it is trained on.
    """

    backbone: str
    options: dict[str, Any]
    image_size: int = 224


def _regnet(se_on: bool, depth: int, w0: int, wa: float, wm: float, group_w: int) -> Architecture:
    options = {"se_on": se_on, "depth": depth, "w0": w0, "wa": wa, "wm": wm, "group_w": group_w}
    return Architecture("regnet", options)


def _resnet(depths: tuple[int, ...], bot_mul: float, group_ws: tuple[int, ...]) -> Architecture:
    """As in the zoo's configurations: an AnyNet, so that bottlenecks stride on their 3 x 3."""
    options = {
        "stem_type": "res_stem_in",
        "stem_w": 64,
        "block_type": "res_bottleneck_block",
        "depths": depths,
        "widths": (256, 512, 1024, 2048),
        "strides": (1, 2, 2, 2),
        "bot_muls": (bot_mul,) * 4,
        "group_ws": group_ws,
    }
    return Architecture("anynet", options)


def _effnet(
    image_size: int, stem_w: int, depths: tuple[int, ...], widths: tuple[int, ...], head_w: int
) -> Architecture:
    options = {"stem_w": stem_w, "depths": depths, "widths": widths, "head_w": head_w}
    return Architecture("effnet", options, image_size)


_REGNET_X = {  # depth, w0, wa, wm, group_w
    "200MF": (13, 24, 36.44, 2.49, 8),
    "400MF": (22, 24, 24.48, 2.54, 16),
    "600MF": (16, 48, 36.97, 2.24, 24),
    "800MF": (16, 56, 35.73, 2.28, 16),
    "1.6GF": (18, 80, 34.01, 2.25, 24),
    "3.2GF": (25, 88, 26.31, 2.25, 48),
    "4.0GF": (23, 96, 38.65, 2.43, 40),
    "6.4GF": (17, 184, 60.83, 2.07, 56),
    "8.0GF": (23, 80, 49.56, 2.88, 120),
    "12GF": (19, 168, 73.36, 2.37, 112),
    "16GF": (22, 216, 55.59, 2.1, 128),
    "32GF": (23, 320, 69.86, 2.0, 168),
}
_REGNET_Y = {
    "200MF": (13, 24, 36.44, 2.49, 8),
    "400MF": (16, 48, 27.89, 2.09, 8),
    "600MF": (15, 48, 32.54, 2.32, 16),
    "800MF": (14, 56, 38.84, 2.4, 16),
    "1.6GF": (27, 48, 20.71, 2.65, 24),
    "3.2GF": (21, 80, 42.63, 2.66, 24),
    "4.0GF": (22, 96, 31.41, 2.24, 64),
    "6.4GF": (25, 112, 33.22, 2.27, 72),
    "8.0GF": (17, 192, 76.82, 2.19, 56),
    "12GF": (19, 168, 73.36, 2.37, 112),
    "16GF": (18, 200, 106.23, 2.48, 112),
    "32GF": (20, 232, 115.89, 2.53, 232),
}
_VIT_L = {"num_layers": 24, "num_heads": 16, "hidden_dim": 1024, "mlp_dim": 4096}
_RESNET_DEPTHS = {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3), "152": (3, 8, 36, 3)}
_B0, _B3 = (16, 24, 40, 80, 112, 192, 320), (24, 32, 48, 96, 136, 232, 384)

ARCHITECTURES: dict[str, Architecture] = {
    **{f"RegNetX-{size}": _regnet(False, *numbers) for size, numbers in _REGNET_X.items()},
    **{f"RegNetY-{size}": _regnet(True, *numbers) for size, numbers in _REGNET_Y.items()},
    **{f"ResNet-{depth}": _resnet(counts, 0.25, (64, 128, 256, 512)) for depth, counts in _RESNET_DEPTHS.items()},
    **{f"ResNeXt-{depth}": _resnet(counts, 0.5, (4, 8, 16, 32)) for depth, counts in _RESNET_DEPTHS.items()},
    "EfficientNet-B0": _effnet(224, 32, (1, 2, 2, 3, 3, 4, 1), _B0, 1280),
    "EfficientNet-B1": _effnet(240, 32, (2, 3, 3, 4, 4, 5, 2), _B0, 1280),
    "EfficientNet-B2": _effnet(260, 32, (2, 3, 3, 4, 4, 5, 2), (16, 24, 48, 88, 120, 208, 352), 1408),
    "EfficientNet-B3": _effnet(300, 40, (2, 3, 3, 5, 5, 6, 2), _B3, 1536),
    "EfficientNet-B4": _effnet(380, 48, (2, 4, 4, 6, 6, 8, 2), (24, 32, 56, 112, 160, 272, 448), 1792),
    "EfficientNet-B5": _effnet(456, 48, (3, 5, 5, 7, 7, 9, 3), (24, 40, 64, 128, 176, 304, 512), 2048),
    # so far pycls's 36, under its names; torchvision has weights for these too
    "ResNet-18": Architecture("resnet", {"depth": 18}),
    "ResNet-34": Architecture("resnet", {"depth": 34}),
    "ResNeXt-101-32x8d": _resnet(_RESNET_DEPTHS["101"], 1.0, (8, 16, 32, 64)),
    "ResNeXt-101-64x4d": _resnet(_RESNET_DEPTHS["101"], 1.0, (4, 8, 16, 32)),
    "WideResNet-50-2": _resnet(_RESNET_DEPTHS["50"], 0.5, (128, 256, 512, 1024)),
    "WideResNet-101-2": _resnet(_RESNET_DEPTHS["101"], 0.5, (128, 256, 512, 1024)),
    **{f"DenseNet-{depth}": Architecture("densenet", {"depth": depth}) for depth in (121, 161, 169, 201)},
    "ViT-B16": Architecture("vit", {}),
    "ViT-B32": Architecture("vit", {"patch_size": 32}),
    "ViT-L16": Architecture("vit", _VIT_L),
    "ViT-L32": Architecture("vit", {**_VIT_L, "patch_size": 32}),
}
