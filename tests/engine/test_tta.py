"""Several views of an image, groups of classes, and what was predicted, each against the plain definition."""

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from pycls.engine import tta
from pycls.engine.evaluate import MOST_CONFUSED, Evaluation, evaluate
from pycls.engine.predictions import Predictions, by_training_size
from pycls.report import csv_files


class Scores(nn.Module):
    """Logits that hang on where things are in the image."""

    def __init__(self, size: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(4, 2 * size * size, generator=generator)

    def forward(self, images: Tensor, labels: Tensor) -> SimpleNamespace:
        logits = images.flatten(1) @ self.weight.T
        return SimpleNamespace(logits=logits, loss=nn.functional.cross_entropy(logits, labels))


@pytest.mark.parametrize("count", [1, 2, 10])
def test_views(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    images, labels = torch.randn(6, 2, 7, 7, generator=generator), torch.arange(6) % 4
    size = 5 if count == 10 else 7
    model = Scores(size)
    views = tta.TestTimeAugmentation(count, size).views(images)
    if count == 10:
        functional = pytest.importorskip("torchvision.transforms.functional")
        ten = functional.ten_crop(images, size)
        assert all(any(torch.equal(view, one) for one in ten) for view in views) and len(views) == len(ten) == 10
    elif count == 2:
        assert torch.equal(views[0], images) and torch.equal(views[1][..., 0], images[..., -1])
    logits, loss = tta.TestTimeAugmentation(count, size).predict(model, images, labels)
    probabilities = torch.stack([model(view, labels).logits.softmax(1) for view in views]).mean(0)
    torch.testing.assert_close(logits.softmax(1), probabilities)
    torch.testing.assert_close(loss, torch.stack([model(view, labels).loss for view in views]).mean())
    if count > 1:  # it makes a difference, and none to which way round an image is
        assert not torch.allclose(probabilities, model(views[0], labels).logits.softmax(1), atol=1e-2)
        torch.testing.assert_close(tta.TestTimeAugmentation(count, size).predict(model, images.flip(3), labels)[0], logits)


def test_groups_of_classes() -> None:
    """The bounds of Liu et al.: 100 and 20 are medium. A group's error is the mean over its classes."""
    result = {"class_samples": [10, 10, 10, 10, 0, 30], "class_errors": [1, 2, 3, 5, 0, 30]}
    groups = by_training_size(result, [101, 100, 20, 19, 5, 0])
    assert groups == {"many": {"classes": 1, "err": 10.0}, "medium": {"classes": 2, "err": 25.0},
                      "few": {"classes": 2, "err": 75.0}}  # fmt: skip
    assert by_training_size(result, [500] * 6)["few"] == {"classes": 0, "err": None}


def test_predictions_and_tables(tmp_path: Path) -> None:
    model, labels = Scores(3), torch.arange(20) % 4
    images = torch.randn(20, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(20)
    batches = [(images[a:b], labels[a:b], ids[a:b]) for a, b in ((8, 20), (0, 8))]
    kept = Predictions(3)
    result = evaluate(model, batches, Evaluation(4, 3, torch.device("cpu")), predictions=kept)
    rows = kept.gather()
    probabilities = model(images, labels).logits.softmax(1)
    for number, (own, label, classes, values) in enumerate(rows):
        assert (own, label) == (number, number % 4)
        best = probabilities[number].sort(descending=True)
        assert classes == best.indices[:3].tolist() and values == pytest.approx(best.values[:3].tolist())
    names = ["ant", "bee, wild", "cat"]
    assert csv_files.write_predictions(tmp_path / "p.csv", rows, names, lambda i: f"{i}.png") == "p.csv"
    csv_files.write_classes(tmp_path / "c.csv", result, names, [7, 5, 3, 1])
    csv_files.write_confusion(tmp_path / "m.csv", result["confusion"], names)
    predictions, classes_, confusion = (list(csv.reader((tmp_path / f"{n}.csv").open())) for n in "pcm")
    assert predictions[0] == ["number", "image", "class", "predicted1", "probability1", "predicted2", "probability2",
                              "predicted3", "probability3"]  # fmt: skip
    shown = [*names, "3"]
    wrong = sum(row[2] != row[3] for row in predictions[1:])
    assert predictions[4][1:3] == ["3.png", "3"] and wrong == result["top1_errors"]
    assert [int(row[4]) for row in classes_[1:]] == result["class_errors"] and [row[1] for row in classes_[1:]] == shown
    for k, row in enumerate(classes_[1:]):
        said = [p for p in predictions[1:] if p[3] == shown[k]]
        right = sum(p[2] == shown[k] for p in said)
        assert row[6] == (f"{100 * right / len(said):.4f}" if said else "") and row[2] == str([7, 5, 3, 1][k])
    assert confusion[0][1:] == shown and [list(map(int, row[1:])) for row in confusion[1:]] == result["confusion"]


def test_very_many_classes_keep_no_confusion() -> None:
    classes = MOST_CONFUSED + 1
    evaluation = Evaluation(classes, 5, torch.device("cpu"))
    evaluation.update(torch.eye(classes)[:7], torch.tensor([0, 1, 2, 3, 4, 6, 6]), torch.tensor(0.0))
    result = evaluation.result()
    assert result["confusion"] == [] and result["class_errors"][6] == 1 and result["class_predictions"][5] == 1
