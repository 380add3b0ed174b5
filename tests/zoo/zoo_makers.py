"""Models as after training, and their weights as their publishers would have them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pycls.models import Classifier, create_model
from pycls.models.weight_names import NameFormat, from_ours

SIDE = 32


class Calls:
    """An object that is made by a call when it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.made_by = function, arguments

    def __reduce__(self) -> Any:
        return self.made_by


def random_model(name: str = "RegNetX-200MF", classes: int = 7, seed: int = 0, **options: Any) -> Classifier:
    """With batch norm as after training, so that a wrong place shows."""
    torch.manual_seed(seed)
    model = create_model(name, classes, **{"image_size": SIDE, **options})
    for key, buffer in model.named_buffers():
        if key.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif key.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return model.eval()


def file_of(model: Classifier, path: Path, form: NameFormat = "pycls", bgr: bool = False, **about: Any) -> bytes:
    """The model's weights as their publisher would have them, as the bytes of a file."""
    state = dict(from_ours(model.state_dict(), model, form))
    if bgr:
        first = next(iter(state))
        assert state[first].shape[1] == 3
        state[first] = state[first].flip(1)
    content = {"epoch": 100, "model_state": state, "optimizer_state": {}, **about} if form == "pycls" else state
    torch.save(content, path)
    return path.read_bytes()
