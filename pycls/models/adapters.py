"""Any classification model of timm or torchvision as a backbone, without its last layer."""

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from pycls.errors import InputError, RunError
from pycls.models.layers.blocks import check_images
from pycls.registry import MODELS, suggestions


@MODELS.register("timm")
class TimmNet(nn.Module):
    """A model of PyTorch Image Models (timm), an optional package, up to its features.

    Args:
        in_channels: channels of an image; pretrained first layers are fitted to them by timm.
        image_size: side of an image in pixels. A model that takes one size only is built for it.
        name: timm's name, such as convnext_tiny; with the set of weights after a dot, such as
            resnet50.a1_in1k, for other than the default ones.
        pretrained: start from timm's weights, which are fetched.

    Raises:
        InputError: the package is not installed, or has no such model.
        RunError: the weights cannot be fetched.
        ValueError: the model cannot work on such images.
    """

    def __init__(self, in_channels: int = 3, image_size: int = 224, name: str = "", pretrained: bool = False) -> None:
        super().__init__()
        check_images("timm", in_channels, image_size)
        timm = _import("timm")
        architecture = name.partition(".")[0]
        if not timm.is_model(architecture):
            raise InputError(_no_such("timm", name, timm.list_models()))
        usual = timm.get_pretrained_cfg(name, allow_unregistered=True)
        size = {"img_size": image_size} if usual is not None and usual.fixed_input_size else {}
        try:
            self.net = timm.create_model(name, pretrained=pretrained, num_classes=0, in_chans=in_channels, **size)
        except (OSError, RuntimeError, ValueError, AssertionError) as error:
            kind = RunError if pretrained and not isinstance(error, AssertionError) else ValueError
            raise kind(f"timm cannot make {name} for {image_size} x {image_size}: {_first_line(error)}") from error
        self.feature_dim = _probe(self.net, f"timm's {name}", in_channels, image_size)

    def forward(self, images: Tensor) -> Tensor:
        """Images float [N, C, H, W] -> features [N, D]."""
        return self.net(images)


@MODELS.register("torchvision")
class TorchvisionNet(nn.Module):
    """A classification model of torchvision, with the identity in place of its last layer.

    Args:
        in_channels: channels of an image: 3, or 1, which is repeated.
        image_size: side of an image in pixels. A model that takes one size only is built for it.
        name: torchvision's name, such as convnext_tiny.
        pretrained: start from torchvision's weights (its default set), which are fetched.

    Raises:
        InputError: torchvision has no such model.
        RunError: the weights cannot be fetched.
        ValueError: the model cannot work on such images.
    """

    def __init__(self, in_channels: int = 3, image_size: int = 224, name: str = "", pretrained: bool = False) -> None:
        super().__init__()
        check_images("torchvision", in_channels, image_size)
        if in_channels not in (1, 3):
            raise ValueError(f"torchvision's models take images of 1 or 3 channels, not {in_channels}")
        models = _import("torchvision.models")
        known = models.list_models(module=models)
        if name not in known:
            raise InputError(_no_such("torchvision", name, known))
        what = f"torchvision's {name}"
        try:
            self.net = models.get_model(name, weights=None, **_build_options(name, image_size))
        except (ValueError, AssertionError) as error:
            raise ValueError(f"{what} cannot be made for {image_size} x {image_size}: {_first_line(error)}") from error
        if pretrained:
            self._load_pretrained(models.get_model_weights(name).DEFAULT, what)
        _drop_classifier(self.net)
        self.feature_dim = _probe(self, what, in_channels, image_size)

    def _load_pretrained(self, weights: Any, what: str) -> None:
        try:
            state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as error:
            raise RunError(f"the weights of {what} cannot be fetched: {_first_line(error)}") from error
        own = self.net.state_dict()  # without the auxiliary classifiers of the Inception nets
        try:
            self.net.load_state_dict({key: value for key, value in state.items() if key in own})
        except RuntimeError as error:
            raise InputError(f"{what}: its weights are for another size of image: {_first_line(error)}") from error

    def forward(self, images: Tensor) -> Tensor:
        """Images float [N, C, H, W] -> features [N, D]."""
        return self.net(images.expand(-1, 3, -1, -1))


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise InputError(f"MODEL.TYPE {package} needs the package {package} (pip install {package}): {error}") from error


def _no_such(package: str, name: str, known: list[str]) -> str:
    if not name:
        return f"{package.upper()}.NAME must be given: the model, such as {known[0]}"
    return f"{package} has no model named {name!r}{suggestions(name, known) if len(known) < 100 else _few(name, known)}"


def _few(name: str, known: list[str]) -> str:
    """The nearest of very many names; never all of them."""
    message = suggestions(name, known)
    return message if message.startswith("; did") else f"; it has {len(known)}, such as {known[0]} and {known[-1]}"


def _build_options(name: str, image_size: int) -> dict[str, Any]:
    """What torchvision's builders want to know beforehand."""
    if name.startswith("vit_"):
        return {"image_size": image_size}
    if name.startswith("maxvit"):
        return {"input_size": (image_size, image_size)}
    return {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}


def _drop_classifier(net: nn.Module) -> None:
    """The identity in place of the last layer that makes 1000 outputs (a 1 x 1 convolution in SqueezeNet)."""
    for path, module in reversed(list(net.named_modules())):
        if 1000 in (getattr(module, "out_features", 0), getattr(module, "out_channels", 0)):
            parent, _, own = path.rpartition(".")
            setattr(net.get_submodule(parent), own, nn.Identity())
            return
    raise AssertionError("every classification model of torchvision ends in a layer of 1000 outputs")


def _probe(net: nn.Module, what: str, in_channels: int, image_size: int) -> int:
    """The width of the features, by a look at those of one image. Raises ``ValueError`` if the net cannot take it."""
    device = next(net.parameters()).device
    net.eval()
    try:
        with torch.no_grad():
            features = net(torch.zeros(1, in_channels, image_size, image_size, device=device))
    except (RuntimeError, ValueError, AssertionError, IndexError, ZeroDivisionError) as error:
        size = f"{image_size} x {image_size}"
        raise ValueError(f"{what} cannot work on images of {size}: {_first_line(error)}") from error
    net.train()
    if not isinstance(features, Tensor) or features.ndim != 2:
        shape = str(list(features.shape)) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"{what} gives {shape}, not features [N, D]")
    return features.shape[1]


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
