"""A file of weights under other names: ours, the public pycls's, or torchvision's."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pycls import build, config
from pycls.engine.state_file import load_weights, save_weights
from pycls.errors import InputError, RunError
from pycls.models import create_model
from pycls.models.classifier import Classifier
from pycls.models.named import ARCHITECTURES
from pycls.models.weight_names import FORMS, Form, from_ours, guess_form, names, to_ours
from pycls.registry import closest
from pycls.runtime import pipe
from pycls.runtime.files import atomic_write

SUFFIXES = (".safetensors", ".pyth", ".pth", ".pt")

Builder = Callable[[int, int], Classifier]
"""(channels of an image, number of classes) -> the model, without storage."""


def convert(weights: Mapping[str, Tensor], make: Builder, to: Form, source: Form | None = None) -> dict[str, Tensor]:
    """Weights under the names of ``to``.

    Args:
        weights: of a whole model.
        make: builds the model that they are for; the weights tell its channels and classes.
        to: the form that is wanted.
        source: the form that they are in; None to see that from their names.

    Raises:
        InputError: they are another model's, or a form does not have this model.
    """
    model = make(3, 1)
    source = source or guess_form(weights, model)
    theirs = names(model, source)
    first = next(theirs[name] for name, p in model.named_parameters() if p.ndim == 4)
    last = theirs["head.similarity.weight"]
    if first in weights and last in weights:  # else to_ours says what is missing
        model = make(weights[first].shape[1], weights[last].shape[0])
    return from_ours(to_ours(weights, model, source), model, to)


def write(path: Path, weights: Mapping[str, Tensor], form: Form) -> None:
    """A safetensors file, or PyTorch's by the suffix; a .pyth is a checkpoint such as pycls loads."""
    if path.suffix == ".safetensors":
        save_weights(path, weights, {"form": form})
        return
    content = {"model_state": dict(weights)} if path.suffix == ".pyth" else dict(weights)
    atomic_write(path, lambda file: torch.save(content, file))


def _builder(arch: str, cfg_file: str | None, overrides: list[str]) -> Builder:
    """Of a named architecture, or of what a configuration says."""
    if arch:
        if cfg_file or overrides:
            raise InputError("give --arch, or --cfg and options, not both")
        if arch not in ARCHITECTURES:
            raise InputError(f"--arch: there is no architecture named {arch!r}{closest(arch, ARCHITECTURES)}")
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
    parser.add_argument("--to", choices=FORMS, required=True, help="whose names the weights get")
    parser.add_argument("--from", dest="source", choices=FORMS, help="whose names they have (default: seen from the names)")
    parser.add_argument("--arch", metavar="NAME", default="", help="the model, by a name such as RegNetX-400MF")
    parser.add_argument("--cfg", metavar="FILE", help="the model, as a configuration says")
    parser.add_argument("input", metavar="IN", help="safetensors, a checkpoint of ours, or a file of PyTorch's")
    parser.add_argument("output", metavar="OUT", help=f"the file to write: {', '.join(SUFFIXES)}")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="options that win over the configuration's: KEY VALUE ...")
    flags = parser.parse_args(argv)
    try:
        out = Path(flags.output)
        if out.suffix not in SUFFIXES or not out.parent.is_dir():
            raise InputError(f"{out}: expected a file in a folder that there is, with {', '.join(SUFFIXES)} at its end")
        make = _builder(flags.arch, flags.cfg, flags.overrides)
        weights, _ = load_weights(flags.input)
        converted = convert(weights, make, flags.to, flags.source)
        write(out, converted, flags.to)
    except (InputError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    print(f"wrote {out}: {len(converted)} tensors under {'our' if flags.to == 'ours' else flags.to + chr(39) + 's'} names")
    return 0


def console() -> None:
    """The script."""
    sys.exit(pipe.run(main))
