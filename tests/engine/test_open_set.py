"""Open-set scores and how they are judged."""

import pytest
import torch

from pycls.engine.open_set import auroc, fpr_at_95, known_scores, similarity_to_prototypes


def test_auroc_counts_pairs():
    known, unknown = torch.tensor([0.9, 0.4, 0.4, 0.7]), torch.tensor([0.1, 0.4, 0.8])
    pairs = [1.0 if k > u else 0.5 if k == u else 0.0 for k in known for u in unknown]
    assert auroc(known, unknown) == pytest.approx(sum(pairs) / len(pairs))
    assert auroc(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])) == 1.0


def test_fpr_at_95():
    known = torch.arange(100.0)
    assert fpr_at_95(known, torch.tensor([4.0, 5.0, 6.0, -1.0])) == 0.5  # 95 of 100 known ones are at 5 or above
    assert fpr_at_95(known, torch.tensor([-5.0])) == 0.0


def test_scores_are_the_formulas():
    logits = torch.tensor([[1.0, 2.0, -1.0]])
    scores = known_scores(logits, torch.tensor([[0.2, 0.9, 0.1]]))
    exponentials = logits.double().exp()
    assert float(scores["max_softmax"]) == pytest.approx(float(exponentials.max() / exponentials.sum()))
    assert float(scores["energy"]) == pytest.approx(float(exponentials.sum().log()))
    assert float(scores["nearest_prototype"]) == pytest.approx(0.9)


def test_similarity_to_prototypes():
    x, w = torch.randn(5, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    far = similarity_to_prototypes(x, w, distance=True)
    assert torch.allclose(far, -((x[:, None] - w) ** 2).sum(2).float(), atol=1e-4)
    near = similarity_to_prototypes(x, w, distance=False)
    assert torch.allclose(near, torch.cosine_similarity(x[:, None], w[None], dim=2).float(), atol=1e-6)


def test_nothing_to_judge_is_an_error():
    with pytest.raises(ValueError, match="AUROC"):
        auroc(torch.tensor([1.0]), torch.empty(0))
