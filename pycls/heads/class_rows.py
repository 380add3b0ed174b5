"""Which tensors of a head have rows for its classes, as its parts declare them."""

from dataclasses import dataclass

from torch import Tensor, nn

from pycls.heads.head import Head
from pycls.heads.parts import Auxiliary, Criterion, Margin, Similarity


@dataclass(frozen=True)
class ClassTensors:
    """Names of a head's tensors, as its state dict has them.

    Attributes:
        learned: name -> rows that a class has in it: prototypes, biases, variances, scales, centres.
        priors: name of those that follow from the classes' counts or from the options, and belong to the training set.
        undeclared: neither of these two and no single numbers: nothing says what their rows are.
    """

    learned: dict[str, int]
    priors: frozenset[str]
    undeclared: list[str]

    def moved(self, own: dict[str, Tensor], given: dict[str, Tensor], places: list[int | None]) -> dict[str, Tensor]:
        """The head's state with the classes of ``given`` in place of its own classes.

        Args:
            own: the head's state, of K classes; what has no counterpart keeps the values in it.
            given: a state of the same kind of head, of any number of classes.
            places: the class in ``given`` of each of the K; None for a new one.
        """
        state = {name: own[name] if name in self.priors else given[name] for name in own}
        known = [(k, there) for k, there in enumerate(places) if there is not None]
        for name, rows in self.learned.items():
            value = own[name].clone()
            by_class, from_class = value.unflatten(0, (-1, rows)), given[name].unflatten(0, (-1, rows))
            by_class[[k for k, _ in known]] = from_class[[there for _, there in known]].to(value)
            state[name] = value
        return state


def class_tensors(head: nn.Module) -> ClassTensors | None:
    """What the parts of a head say of its tensors, which are all here and not sharded; None for a head without parts."""
    if not isinstance(head, Head):
        return None
    learned: dict[str, int] = {}
    priors: set[str] = set()
    for prefix, part in head.named_modules():
        if isinstance(part, Similarity | Auxiliary):
            for name in part.class_rows():
                rows, rest = divmod(len(getattr(part, name)), head.similarity.num_classes)
                learned.update({f"{prefix}.{name}": rows} if rest == 0 else {})
        if isinstance(part, Margin | Criterion):
            priors.update(f"{prefix}.{name}" for name in part.class_priors())
    state = head.state_dict()
    undeclared = [name for name, value in state.items() if value.ndim and name not in learned and name not in priors]
    return ClassTensors(learned, frozenset(priors), undeclared)
