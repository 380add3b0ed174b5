"""A file of weights under other names: ours, the public pycls's, or torchvision's.

We and torchvision show a net RGB; pycls shows it the images of ImageNet in BGR. So the first convolution's input channels
are turned where one net is to see what the other saw. Which of the two it is, is an attribute of the weights: of the
zoo's entry, of what pycls's or our configuration in the file says they were trained on, or of the file that this tool
wrote. Where nothing says it, it has to be given.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from pycls import build, config
from pycls.engine.checkpoint.state_file import save_weights
from pycls.errors import InputError, RunError
from pycls.models import create_model
from pycls.models.classifier import Classifier
from pycls.models.weight_names import (
    NAME_FORMATS,
    NameFormat,
    first_convolution,
    from_ours,
    guess_form,
    names,
    to_ours,
    turn_colours,
)
from pycls.models.zoo_names import ARCHITECTURES
from pycls.registry import suggestions
from pycls.runtime import pipe
from pycls.runtime.files import atomic_write
from pycls.runtime.log import setup_logging
from pycls.zoo.catalogue import COLOURS, Colours
from pycls.zoo.weights import Weights, load, names_in, pycls_colours

SUFFIXES = (".safetensors", ".pyth", ".pth", ".pt")

Builder = Callable[[int, int], Classifier]
"""(channels of an image, number of classes) -> the model, without storage."""


def convert(
    weights: Weights, make: Builder, to: NameFormat, source: NameFormat | None = None,
    to_colours: Colours | None = None, source_colours: Colours | None = None,
) -> Weights:  # fmt: skip
    """Weights under the names of ``to``, which want the colours as ``to`` shows them.

    Args:
        weights: of a whole model.
        make: builds the model that they are for; the weights tell its channels and classes.
        to: the form that is wanted.
        source: the form that they are in; None to see that from their names.
        to_colours: the order of colours that is to be wanted; None for that in which ``to`` shows images.
        source_colours: the order that is wanted now; None for what is known of the weights.

    Raises:
        InputError: they are another model's, a form does not have this model, or nothing says in which order its colours
            are shown.
    """
    model = make(3, 1)
    source = source or guess_form(weights.state, model)
    theirs = names(model, source)
    first, last = theirs[first_convolution(model)], theirs["head.similarity.weight"]
    if first in weights.state and last in weights.state:  # else to_ours says what is missing
        model = make(weights.state[first].shape[1], weights.state[last].shape[0])
    state = to_ours(weights.state, model, source)
    colours = None
    if state[first_convolution(model)].shape[1] == 3:
        before = source_colours or weights.colours or _shown_by(source, weights, "--from-colours")
        colours = to_colours or _shown_by(to, weights, "--to-colours")
        state = state if colours == before else turn_colours(state, model)
    named = names_in(weights.about.get("class_names"), len(state["head.similarity.weight"]), weights.source)
    about = {**weights.about, "class_names": named}
    return Weights(from_ours(state, model, to), weights.source, colours, weights.data, about=about)


def _shown_by(form: NameFormat, weights: Weights, flag: str) -> Colours:
    """The order in which the colours of an image are shown to a net."""
    colours = "RGB" if form != "pycls" else pycls_colours(weights.data)
    if colours is None:
        trained = f"the images of {weights.data}, which pycls does not have" if weights.data else "nothing that the file tells"
        raise InputError(f"{weights.source} was trained on {trained}: give {flag} BGR, in which pycls shows ImageNet, or RGB")
    return colours


def write(path: Path, weights: Weights, form: NameFormat) -> None:
    """A safetensors file, or PyTorch's by the suffix; a .pyth is a checkpoint such as pycls loads.

    A bare state dict (.pth, .pt) cannot tell which order of colours it wants, nor what its classes are called.
    """
    facts = {"data": weights.data, "split": weights.split, **({"colours": weights.colours} if weights.colours else {}),
             **({"class_names": weights.about["class_names"]} if weights.about.get("class_names") else {})}  # fmt: skip
    if path.suffix == ".safetensors":
        save_weights(path, weights.state, {"form": form, **facts})
        return
    content = {"model_state": weights.state, "epoch": 0, **facts} if path.suffix == ".pyth" else weights.state
    atomic_write(path, lambda file: torch.save(content, file))


def _builder(arch: str, cfg_file: str | None, overrides: list[str]) -> Builder:
    """Of a named architecture, or of what a configuration says."""
    if arch:
        if cfg_file or overrides:
            raise InputError("give --arch, or --cfg and options, not both")
        if arch not in ARCHITECTURES:
            raise InputError(f"--arch: there is no architecture named {arch!r}{suggestions(arch, ARCHITECTURES)}")
        return lambda channels, classes: _without_storage(lambda: create_model(arch, classes, in_channels=channels))
    if not cfg_file and not overrides:
        raise InputError("whose weights are these? Give --arch NAME, or --cfg FILE and options such as MODEL.TYPE resnet")
    cfg = config.load(cfg_file, overrides)
    size = cfg.TRAIN.IM_SIZE or 224
    return lambda channels, classes: _without_storage(lambda: build.build_model(cfg, channels, size, classes))


def _without_storage(make: Callable[[], Classifier]) -> Classifier:
    with torch.device("meta"):
        return make()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 it cannot be done, 2 what was given cannot work."""
    parser = argparse.ArgumentParser(prog="convert_weights.py", description="Renames the weights in a file.")
    parser.add_argument("--to", choices=NAME_FORMATS, required=True, help="whose names the weights get")
    parser.add_argument("--from", dest="source", choices=NAME_FORMATS,
                        help="whose names they have (default: seen from the names)")
    parser.add_argument("--to-colours", choices=COLOURS, help="the order that OUT wants (default: as --to shows images)")
    parser.add_argument("--from-colours", choices=COLOURS, help="the order that IN wants (default: what is known of it)")
    parser.add_argument("--arch", metavar="NAME", default="", help="the model, by a name such as RegNetX-400MF")
    parser.add_argument("--cfg", metavar="FILE", help="the model, as a configuration says")
    parser.add_argument("input", metavar="IN", help="a file of ours, PyTorch's or safetensors, a URL, a name of the Model Zoo")
    parser.add_argument("output", metavar="OUT", help=f"the file to write: {', '.join(SUFFIXES)}")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="options that win over the configuration's: KEY VALUE ...")
    flags = parser.parse_args(argv)
    setup_logging()
    try:
        out = Path(flags.output)
        if out.suffix not in SUFFIXES or not out.parent.is_dir():
            raise InputError(f"{out}: expected a file in a folder that there is, with {', '.join(SUFFIXES)} at its end")
        make = _builder(flags.arch, flags.cfg, flags.overrides)
        converted = convert(load(flags.input), make, flags.to, flags.source, flags.to_colours, flags.from_colours)
        write(out, converted, flags.to)
    except (InputError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    whose = "our" if flags.to == "ours" else f"{flags.to}'s"
    colours = f", for {converted.colours} images" if converted.colours else ""
    print(f"wrote {out}: {len(converted.state)} tensors under {whose} names{colours}")
    return 0


def console() -> None:
    """The script."""
    sys.exit(pipe.run(main))
