"""How weights get into a classifier: under our names, in RGB order, and each class's rows by its name."""

import contextlib
import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pycls.engine.checkpoint.checkpoints import load_model_state
from pycls.errors import InputError
from pycls.models.classifier import Classifier
from pycls.models.head_classes import PREFIX, head_for_classes, number_of_classes
from pycls.models.weight_names import NAME_FORMATS, STEPS, NameFormat, first_convolution, is_rbf, names, to_ours, turn_colours
from pycls.registry import HEADS
from pycls.zoo.weights import Weights, is_ours, names_in, options_in

logger = logging.getLogger(__name__)


def load_into(
    model: Classifier, weights: Weights, new_head: bool = False, class_names: Sequence[str] | None = None, data: str = ""
) -> None:
    """Copies weights into a classifier of the same architecture.

    A model whose weights want BGR gets the first convolution's input channels in the opposite order, so that it takes RGB
    as every other one does. It is saved so, too. Weights of which nothing says what they want are taken to want RGB, which
    a line of the log says of those in pycls's names.

    Args:
        model: a classifier.
        weights: from :func:`load`.
        new_head: whether the head's weights go to the classes of the same names, and a head of another kind, or for other
            classes, is left as it is, which a line of the log says; else the head's weights must fit as they are.
        class_names: of the model's classes, for ``new_head``; None where nothing tells them. The model has those that are
            known as ``class_names`` afterwards.
        data: the data set of these classes, for ``new_head``; empty if nothing says it.

    Raises:
        InputError: they are another model's weights, or their names of classes cannot be that.
    """
    _check_options(model, weights)
    state = _in_our_names(model, weights)
    if weights.colours == "BGR":
        state = turn_colours(state, model)
    elif weights.colours is None and _form(model, weights) == "pycls" and state[first_convolution(model)].shape[1] == 3:
        logger.warning("%s does not say whether its weights want RGB or BGR: RGB is assumed (tools/convert_weights.py "
                       "--from-colours BGR turns them)", weights.source)  # fmt: skip
    about, known = weights.about.get("class_names"), None
    if new_head:
        given = {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)}
        head, known = head_for_classes(model.head, given, about, class_names, weights.source, weights.data, data)
        state = {name: tensor for name, tensor in state.items() if not name.startswith(PREFIX)}
        state |= {PREFIX + name: tensor for name, tensor in head.items()}
    load_model_state(model, state, weights.source)
    model.class_names = known if new_head else names_in(about, number_of_classes(model.head), weights.source)


def _in_our_names(model: Classifier, weights: Weights) -> dict[str, Tensor]:
    """The state dict in our names, with the model's count of steps where others' weights have none. Its head is the
    weights', and need not be the model's."""
    steps = {name: tensor for name, tensor in model.state_dict().items() if name == STEPS}
    if is_ours(weights.state):
        return steps | weights.state
    form = _form(model, weights)
    classifier = names(_with_linear(model, 1), form)["head.similarity.weight"]
    classes = len(weights.state[classifier]) if classifier in weights.state else 1
    own = model.state_dict().get("head.similarity.weight")
    rbf = form == "pycls" and is_rbf(model) and own is not None and classes == len(own) and _may_be_rbf(weights)
    try:
        state = to_ours(weights.state, model if rbf else _with_linear(model, classes), form)
    except InputError as error:
        raise InputError(f"{weights.source}: {error}") from None
    return state | steps


def _may_be_rbf(weights: Weights) -> bool:
    """Whether the head in these weights under pycls's names can be an RBF-Softmax, which they need not say."""
    options = options_in(weights.about).get("MODEL")
    return weights.entry is None and (not isinstance(options, dict) or options.get("LOGITS_TYPE") == "rbf_logit")


def _form(model: Classifier, weights: Weights) -> NameFormat:
    """Whose names these are: those of which the most are the model's."""
    shared: dict[NameFormat, int] = {}
    for form in NAME_FORMATS:
        with contextlib.suppress(InputError):  # they have no such model
            shared[form] = len(weights.state.keys() & set(names(_with_linear(model, 1), form).values()))
    form = max(shared, key=lambda form: shared[form])
    if not shared[form]:
        first = next(iter(weights.state))
        raise InputError(f"{weights.source} holds the weights of another model: it has {first}, and none that this model has")
    return form


def _with_linear(model: Classifier, classes: int) -> Classifier:
    """The model with a linear classifier of so many classes on it; one without storage."""
    with torch.device("meta"):
        return Classifier(model.backbone, HEADS.get("softmax")(in_features=model.backbone.feature_dim, num_classes=classes))


def _check_options(model: Classifier, weights: Weights) -> None:
    """Numbers that the architecture leaves open and that the weights were trained with."""
    options = weights.entry.options if weights.entry else {}
    if weights.entry is None and not is_ours(weights.state) and _form(model, weights) == "torchvision":
        options = {"ln_eps": 1e-6}  # of all torchvision's nets with layer norms that we have
    kinds = {"bn_eps": ("BN.EPS", nn.BatchNorm2d), "ln_eps": ("LN.EPS", nn.LayerNorm)}
    for option, wanted in options.items():
        key, kind = kinds[option]
        found = next((module.eps for module in model.modules() if isinstance(module, kind)), wanted)
        if found != wanted:
            raise InputError(f"{weights.source} was trained with {key} {wanted:g}, and the model has {found:g}: set it so")
