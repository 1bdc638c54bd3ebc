import pytest
import torch

from sparseflow.masks import Scores, criteria

WEIGHTS = {"a": torch.tensor([[1.0, -2.0]]), "b": torch.zeros(1000)}


def test_magnitude_copies_nothing() -> None:
    scores = criteria.magnitude(WEIGHTS)
    assert scores.absolute
    assert {name: score.data_ptr() for name, score in scores.tensors.items()} == {
        name: weight.data_ptr() for name, weight in WEIGHTS.items()
    }


def test_magnitude_of_a_parameter_needs_no_gradient() -> None:
    scores = criteria.magnitude({"a": torch.nn.Parameter(torch.ones(2))})
    assert not scores.tensors["a"].requires_grad


def test_random_depends_on_seed_name_and_shape_alone() -> None:
    scores = criteria.random(WEIGHTS, seed=1).tensors
    alone = criteria.random({"b": torch.ones(1000, dtype=torch.bfloat16)}, seed=1).tensors
    assert torch.equal(scores["b"], alone["b"])
    assert not torch.equal(scores["b"], criteria.random(WEIGHTS, seed=2).tensors["b"])
    assert not torch.equal(scores["b"], criteria.random({"c": WEIGHTS["b"]}, seed=1).tensors["c"])


def test_random_has_no_ties_worth_speaking_of() -> None:
    scores = criteria.random({"a": torch.empty(100_000)}, seed=0).tensors["a"]
    assert len(set(scores.tolist())) == 100_000


def test_get_takes_a_name_or_a_function() -> None:
    def mine(weights: object, seed: int) -> Scores:
        return Scores({}, absolute=False)

    assert criteria.get("magnitude") is criteria.magnitude
    assert criteria.get(mine) is mine


def test_get_lists_the_choices() -> None:
    with pytest.raises(
        ValueError, match=r"no criterion 'magnitud'; available: magnitude, random; did you mean 'magnitude'\?"
    ):
        criteria.get("magnitud")
    with pytest.raises(TypeError, match="expected a name or a function, got int"):
        criteria.get(3)  # type: ignore[arg-type]
