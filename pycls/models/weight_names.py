"""The same weights under other names: a state dict of ours, of the public pycls, or of torchvision.

Which names go together follows from the model, so that a name too many, one too few or another shape is found. Numbers
are never changed: all three keep every weight in the same order, but for the colours that the first convolution sees,
of which :func:`turn_colours` changes the order. Other versions of their names are read as well: of pycls's ViT with
linear layers for its attention and positions as [1, L, D] (branches of its repository), of the RBF-Softmax repository,
which was made from pycls, and of torchvision's files.
"""

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from pycls.errors import InputError
from pycls.models.anynet import AnyNet
from pycls.models.classifier import Classifier
from pycls.models.densenet import DenseNet
from pycls.models.efficientnet import EffNet
from pycls.models.layers.residual import BottleneckTransform
from pycls.models.resnets import ResNet
from pycls.models.vit import ViT

logger = logging.getLogger(__name__)

NameFormat = Literal["ours", "pycls", "torchvision"]
NAME_FORMATS: tuple[NameFormat, ...] = ("ours", "pycls", "torchvision")

STEPS = "head.steps"
"""What only we keep: a head's count of training steps."""

_OWN = (STEPS,)

_HEAD = re.compile(r"head\.similarity\.(weight|bias)")
_POSITIONS = "pos_embedding"
_RBF_BIAS = "head.fc.bias"


def to_ours(weights: Mapping[str, Tensor], model: Classifier, form: NameFormat) -> dict[str, Tensor]:
    """A whole model's weights under our names, for ``model.load_state_dict(..., strict=True)``.

    Args:
        weights: state dict in the given form.
        model: the model that they are for; its values do not matter, and it may be on the meta device.
        form: ``ours``, ``pycls`` or ``torchvision``.

    Raises:
        InputError: names that are missing or unknown, or shapes that are not the model's, each with the first few; or a
            model that the form does not have.
    """
    if form == "pycls":
        weights = _as_pycls_today(weights, model)
    if form == "torchvision":
        weights = _first_torchvision(weights)
    renamed = _rename(weights, {theirs: ours for ours, theirs in names(model, form).items()}, f"{form}'s names")
    own = model.state_dict()
    if form == "pycls":
        renamed = _turn_positions(renamed, model, 0)
    wrong = [
        f"{name} is {list(tensor.shape)} and should be {list(own[name].shape)}"
        for name, tensor in renamed.items()
        if tensor.shape != own[name].shape
    ]
    if wrong:
        raise InputError(f"these weights are for another model: {_some(wrong)}")
    return renamed | {name: own[name] for name in _OWN if name in own and name not in renamed and not own[name].is_meta}


def from_ours(weights: Mapping[str, Tensor], model: Classifier, form: NameFormat) -> dict[str, Tensor]:
    """A whole model's weights under the names of ``form``. Arguments and errors are those of :func:`to_ours`."""
    renamed = _rename(weights, names(model, form), "our names", skip=_OWN if form != "ours" else ())
    if form == "pycls":
        renamed = _turn_positions(renamed, model, 1)
        if is_rbf(model):
            renamed[_RBF_BIAS] = torch.zeros(len(renamed["head.fc.weight"]))  # its repository has one, and never uses it
    return renamed


def names(model: Classifier, form: NameFormat) -> dict[str, str]:
    """Our name of each parameter and buffer of a model -> its name in ``form``.

    Raises:
        InputError: the form has no such model.
    """
    ours = list(model.state_dict())
    if form == "ours":
        return {name: name for name in ours}
    backbone = model.backbone
    rename = _pycls(backbone) if form == "pycls" else _torchvision(backbone)
    head = [name for name in ours if name.startswith("head.") and name not in _OWN]
    if rename is None:
        raise InputError(f"{form} has no model such as this {type(backbone).__name__}")
    if sorted(head) != ["head.similarity.bias", "head.similarity.weight"] and not (form == "pycls" and is_rbf(model)):
        raise InputError(f"{form} has the linear layer of a softmax head only; this model's head has {', '.join(head)}")
    return {name: rename(name.removeprefix("backbone.")) for name in ours if name not in _OWN}


def is_rbf(model: Classifier) -> bool:
    """Whether its head is that of the RBF-Softmax repository."""
    head = [name for name in model.head.state_dict() if f"head.{name}" not in _OWN]
    return head == ["similarity.weight"] and getattr(model.head.similarity, "name", "") == "rbf"


def first_convolution(model: Classifier) -> str:
    """Our name of the weight [w_out, channels, k, k] that sees the image."""
    return next(f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Conv2d))


def turn_colours(weights: Mapping[str, Tensor], model: Classifier) -> dict[str, Tensor]:
    """Weights under our names that want RGB as those of the same net that want BGR, or the other way round."""
    stem = first_convolution(model)
    return dict(weights) | {stem: weights[stem].flip(1)}


def guess_form(weights: Iterable[str], model: Classifier) -> NameFormat:
    """The form whose names most of these are. Raises :class:`InputError` if none of them is any form's of this model."""
    given, best, most = set(weights), None, 0
    for form in NAME_FORMATS:
        try:
            shared = len(given.intersection(names(model, form).values()))
        except InputError:  # a form that does not have this model
            continue
        if shared > most:
            best, most = form, shared
    if best is None:
        raise InputError(f"these weights are for another model: {_some(sorted(given))}")
    return best


def _rename(
    weights: Mapping[str, Tensor], mapping: Mapping[str, str], what: str, skip: Iterable[str] = ()
) -> dict[str, Tensor]:
    given = weights.keys() - set(skip)
    missing, unknown = sorted(mapping.keys() - given - set(_OWN)), sorted(given - mapping.keys())
    if missing or unknown:
        parts = [f"{kind} {_some(found)}" for kind, found in (("missing", missing), ("unknown", unknown)) if found]
        raise InputError(f"these weights are for another model, or not in {what}: {'; '.join(parts)}")
    return {mapping[name]: weights[name] for name in weights if name in mapping}


def _some(entries: list[str], shown: int = 3) -> str:
    rest = f" and {len(entries) - shown} more" if len(entries) > shown else ""
    return ", ".join(entries[:shown]) + rest


# --- pycls


def _pycls(backbone: object) -> Callable[[str], str] | None:
    """Our name without ``backbone.`` -> pycls's. What is before its last linear layer is the backbone's here."""
    if not isinstance(backbone, ResNet | AnyNet | EffNet | ViT):
        return None
    if isinstance(backbone, ViT):
        return _pycls_vit
    return lambda name: re.sub(r"^head_conv\.", "head.", _HEAD.sub(r"head.fc.\1", name))


def _pycls_vit(name: str) -> str:
    """pycls has PyTorch's module for attention, as its own ``block``."""
    name = _HEAD.sub(r"head.head_fc.\1", name)
    return re.sub(r"self_attention\.(?:attn_proj\.|(out_proj\.))", lambda m: f"self_attention.block.{m[1] or 'in_proj_'}", name)


def _turn_positions(weights: dict[str, Tensor], model: Classifier, places: Literal[0, 1]) -> dict[str, Tensor]:
    """With a ViT's positions as [1, L, D] (``places`` 0, as here) or [L, 1, D] (1, as in pycls), whichever they are now."""
    name = _POSITIONS if places else f"backbone.{_POSITIONS}"
    positions = weights.get(name)
    if not isinstance(model.backbone, ViT) or positions is None or positions.ndim != 3 or positions.shape[places] == 1:
        return weights
    return weights | {name: positions.transpose(0, 1).contiguous()}


def _as_pycls_today(weights: Mapping[str, Tensor], model: Classifier) -> dict[str, Tensor]:
    """Names of versions of pycls as those of its main branch.

    The RBF-Softmax repository has ``se.conv1`` and ``se.f_ex.0`` in its EfficientNets for ``se.f_ex.0`` and ``se.f_ex.2``,
    and a bias in its head that is neither trained nor used.
    """
    renamed = {}
    for name, weight in weights.items():
        first = re.sub(r"\.se\.f_ex\.0\.(weight|bias)$", r".se.conv1.\1", name)
        if first != name and first in weights:
            name = name.replace(".f_ex.0.", ".f_ex.2.")
        name = re.sub(r"\.se\.conv1\.(weight|bias)$", r".se.f_ex.0.\1", name)
        renamed[_pycls_vit(name) if isinstance(model.backbone, ViT) else name] = weight
    if is_rbf(model) and renamed.pop(_RBF_BIAS, None) is not None:
        logger.info("%s is dropped: RBF-Softmax has no bias, and that in its repository's files is never used", _RBF_BIAS)
    return renamed


# --- torchvision


def _torchvision(backbone: object) -> Callable[[str], str] | None:
    """Our name without ``backbone.`` -> torchvision's."""
    if isinstance(backbone, ResNet | AnyNet) and _is_resnet(backbone):
        return _torchvision_resnet
    if isinstance(backbone, AnyNet):
        return _torchvision_regnet
    if isinstance(backbone, EffNet):
        return _EffNetNames(backbone)
    if isinstance(backbone, DenseNet):
        return lambda name: _HEAD.sub(r"classifier.\1", name)
    if isinstance(backbone, ViT):
        return _torchvision_vit
    return None


def _first_torchvision(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dicts as they were published before torchvision, or PyTorch, changed the names, as they are today.

    DenseNets have ``norm.1`` for ``norm1`` and its like, ViTs ``mlp.linear_1`` and ``mlp.linear_2`` for ``mlp.0`` and
    ``mlp.3``; the oldest files do not count the batches that batch norm has seen.
    """
    renamed = {}
    for name, weight in weights.items():
        name = re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name)
        name = re.sub(r"(encoder_layer_\d+\.mlp)\.linear_([12])\.", lambda m: f"{m[1]}.{0 if m[2] == '1' else 3}.", name)
        renamed[name] = weight
        if name.endswith(".running_var"):
            renamed.setdefault(name.replace(".running_var", ".num_batches_tracked"), torch.tensor(0))
    return renamed


def _is_resnet(backbone: ResNet | AnyNet) -> bool:
    """Whether it is a ResNet of torchvision's, by its stem. Raises ``InputError`` for one that strides elsewhere."""
    for module in backbone.modules():
        if isinstance(module, BottleneckTransform) and module.a.stride != (1, 1):
            raise InputError("torchvision's ResNets stride on the 3 x 3: this model needs RESNET.STRIDE_1X1 False")
    return hasattr(backbone.stem, "pool")


def _torchvision_resnet(name: str) -> str:
    name = re.sub(r"^stem\.(conv|bn)\.", r"\g<1>1.", _HEAD.sub(r"fc.\1", name))
    block = re.match(r"s(\d+)\.b(\d+)\.(.+)$", name)
    if block is None:
        return name
    inner = re.sub(r"^proj\.", "downsample.0.", re.sub(r"^bn\.", "downsample.1.", block[3]))
    inner = re.sub(r"^f\.([abc])(_bn)?\.", lambda m: f"{'bn' if m[2] else 'conv'}{'abc'.index(m[1]) + 1}.", inner)
    return f"layer{block[1]}.{int(block[2]) - 1}.{inner}"


def _torchvision_regnet(name: str) -> str:
    name = re.sub(r"^stem\.(conv|bn)\.", lambda m: f"stem.{int(m[1] == 'bn')}.", _HEAD.sub(r"fc.\1", name))
    block = re.match(r"s(\d+)\.b(\d+)\.(.+)$", name)
    if block is None:
        return name
    inner = re.sub(r"^(proj|bn)\.", lambda m: f"proj.{int(m[1] == 'bn')}.", block[3])
    inner = re.sub(r"^f\.([abc])(_bn)?\.", lambda m: f"f.{m[1]}.{1 if m[2] else 0}.", inner)
    inner = re.sub(r"^f\.se\.f_ex\.([02])\.", lambda m: f"f.se.fc{1 if m[1] == '0' else 2}.", inner)
    return f"trunk_output.block{block[1]}.block{block[1]}-{int(block[2]) - 1}.{inner}"


class _EffNetNames:
    """torchvision numbers the layers of a block, and a block without an expansion has one layer fewer."""

    def __init__(self, backbone: EffNet) -> None:
        self.last = len(backbone.stages) + 1
        self.expanded = {prefix for prefix, module in backbone.named_modules() if getattr(module, "has_exp", False)}

    def __call__(self, name: str) -> str:
        name = _HEAD.sub(r"classifier.1.\1", name)
        name = re.sub(r"^stem\.(conv|bn)\.", lambda m: f"features.0.{int(m[1] == 'bn')}.", name)
        name = re.sub(r"^head_conv\.conv(_bn)?\.", lambda m: f"features.{self.last}.{1 if m[1] else 0}.", name)
        block = re.match(r"(s(\d+)\.b(\d+))\.(\w+?)(_bn)?\.(.+)$", name)
        if block is None:
            return name
        layer = ("exp", "dwise", "se", "lin_proj").index(block[4]) - (block[1] not in self.expanded)
        if block[4] == "se":
            inner = re.sub(r"^f_ex\.([02])\.", lambda m: f"fc{1 if m[1] == '0' else 2}.", block[6])
        else:
            inner = f"{1 if block[5] else 0}.{block[6]}"
        return f"features.{block[2]}.{int(block[3]) - 1}.block.{layer}.{inner}"


def _torchvision_vit(name: str) -> str:
    name = _HEAD.sub(r"heads.head.\1", name)
    name = re.sub(r"^stem\.patchify\.", "conv_proj.", name)
    name = re.sub(r"^pos_embedding$", "encoder.pos_embedding", name)
    name = re.sub(r"^encoder\.block_(\d+)\.", r"encoder.layers.encoder_layer_\1.", name)
    name = re.sub(r"self_attention\.attn_proj\.", "self_attention.in_proj_", name)
    return re.sub(r"mlp_block\.linear_([12])\.", lambda m: f"mlp.{0 if m[1] == '1' else 3}.", name)
