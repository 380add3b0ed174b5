"""Classifiers for a frozen backbone, on features that are made up."""

from types import SimpleNamespace

import torch

from pycls.engine.decouple import choose_tau, class_means, tau_normalised

MODEL = SimpleNamespace(eval=lambda: None, features=lambda images: images, backbone=SimpleNamespace(feature_dim=2))


def test_tau_is_chosen_by_the_mean_over_the_classes() -> None:
    weight = torch.tensor([[10.0, 0.0], [0.0, 1.0]])
    # a sample of class 1 at angle a to its axis is right if 10^(1 - tau) tan(a) < 1
    rare = torch.tensor([[0.4, 1.0], [0.2, 1.0]])  # right from tau 0.7 and from 0.4 on
    common = torch.tensor([[1.0, 0.0]] * 98 + [[1.0, 2.2]] * 2)  # the last two right up to tau 0.6
    features, labels = torch.cat((rare, common)), torch.tensor([1, 1] + [0] * 100)
    batches = [(features[:50], labels[:50], None), (features[50:], labels[50:], None)]
    assert choose_tau(MODEL, weight, batches, torch.ones(2, dtype=torch.bool)) == 0.7, "two of the many for half of the few"


def test_tau_is_chosen_among_the_classes_that_have_training_images() -> None:
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 0.0]])
    batches = [(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]), None)]
    assert choose_tau(MODEL, weight, batches, torch.tensor([True, True, False])) == 0.0
    assert choose_tau(MODEL, weight, batches, torch.tensor([True, True, True])) >= 1.0, "class 2 takes those of class 0"


def test_a_row_of_zeros_stays() -> None:
    assert tau_normalised(torch.zeros(2, 3), 1.0).abs().sum() == 0
    assert torch.equal(tau_normalised(torch.tensor([[3.0, 4.0]]), 0.0), torch.tensor([[3.0, 4.0]]))


def test_class_means() -> None:
    x, y = torch.randn(7, 2), torch.tensor([0, 2, 2, 0, 2, 0, 0])
    means = class_means(MODEL, [(x[:3], y[:3], None), (x[3:], y[3:], None)], 3, torch.device("cpu"))
    torch.testing.assert_close(means, torch.stack([x[y == 0].mean(0), torch.zeros(2), x[y == 2].mean(0)]))
