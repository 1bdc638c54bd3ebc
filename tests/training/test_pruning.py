import pytest
import torch
from tiny_task import Net
from torch import nn

import sparseflow as sf


def test_the_smallest_of_the_model_go_and_the_model_stays() -> None:
    model = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5, -3.0, 0.1], [-0.2, 1.0, 2.0]]))
    before = model.weight.detach().clone()
    masks = sf.prune(model, 0.5)
    assert masks["weight"].tolist() == [[False, True, False], [False, True, True]]
    assert torch.equal(model.weight, before)


def test_survivors_are_those_of_the_sparse_layers() -> None:
    torch.manual_seed(0)
    model: nn.Module = Net()
    first = sf.prune(model, rate=0.5, floor=1)
    model = sf.sparsify(model, {"fc1.weight": first["fc1.weight"]}, backend="dense-compact")
    second = sf.prune(model, rate=0.5, floor=1)
    assert not bool((second["fc1.weight"] & ~first["fc1.weight"]).any())
    alive = int(first["fc1.weight"].sum()) + 48
    assert second.nnz == alive - round(0.5 * alive)


@pytest.mark.parametrize("chosen", ["fc1*", ["fc1.weight"], lambda name: name.startswith("fc1")])
def test_a_filter_chooses_by_dense_name(chosen: object) -> None:
    masks = sf.prune(Net(), 0.5, param_filter=chosen)  # type: ignore[arg-type]
    assert list(masks) == ["fc1.weight"]


def test_a_filter_that_matches_nothing_lists_the_names() -> None:
    with pytest.raises(ValueError, match=r"'conv\*' matches no prunable weight; they are: fc1.weight, fc2.weight"):
        sf.prune(Net(), 0.5, param_filter="conv*")


def test_a_model_without_prunable_weights_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a model with weights to prune .* found none in Embedding"):
        sf.prune(nn.Embedding(3, 4), 0.5)


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, float("nan")])
def test_density_lies_in_0_to_1(density: float) -> None:
    with pytest.raises(ValueError, match=r"density: expected the fraction to keep, in \(0, 1\]"):
        sf.prune(Net(), density)


@pytest.mark.parametrize(
    ("name", "mask", "message"),
    [
        ("fc1.weight", torch.ones(8, 16, dtype=torch.bool), "fc1.weight"),
        ("fc9.weight", torch.ones(16, 8, dtype=torch.bool), "fc9.weight"),
        ("fc1.weight", torch.ones(16, 8), "bool"),
    ],
)
def test_masks_that_do_not_fit_are_refused(name: str, mask: torch.Tensor, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        sf.prune(Net(), 0.5, masks={name: mask})
