"""Zhou et al.'s mask criteria on four weights that each stand for a case."""

import pytest
import torch
from torch import nn

import sparseflow as sf
from sparseflow.masks import mask_criteria

# Grew, shrank, changed sign, moved away from zero.
INITIAL = torch.tensor([1.0, -3.0, 2.0, 0.0])
FINAL = torch.tensor([4.0, -1.0, -2.0, 0.5])
EXPECTED = {
    "movement": [3.0, 2.0, 4.0, 0.5],
    "magnitude_increase": [3.0, -2.0, 0.0, 0.5],
    "large_init_large_final": [1.0, 1.0, 2.0, 0.0],
    "large_final_same_sign": [4.0, 1.0, 0.0, 0.0],
}


@pytest.mark.parametrize(("name", "expected"), EXPECTED.items())
def test_scores(name: str, expected: list[float]) -> None:
    criterion = getattr(mask_criteria, name)({"a": INITIAL})
    assert criterion({"a": FINAL}, 0).tensors["a"].tolist() == expected


@pytest.mark.parametrize("name", EXPECTED)
def test_by_name_with_the_state_of_the_start(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    start = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with torch.no_grad():
        model.weight.add_(torch.randn(4, 6))
    masks = sf.prune(model, 0.5, criterion=name, start=start)
    scores = getattr(mask_criteria, name)(start)({"weight": model.weight.detach()}, 0).tensors["weight"]
    assert masks.nnz == 12
    assert float(scores[masks["weight"]].min()) >= float(scores[~masks["weight"]].max())


def test_a_start_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'movement': expected a weight of the start of shape \(4, 6\) for 'weight'"):
        sf.prune(nn.Linear(6, 4), 0.5, criterion="movement", start={"weight": torch.ones(6, 4)})
