"""What a search costs: FLOPs by hand for linear and convolutional layers, and identities between rounds."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import sparseflow as sf
from sparseflow.hardware.flops import LayerFlops, example_flops, layer_flops, step_flops
from sparseflow.report import summary
from sparseflow.report.result import Search
from sparseflow.report.search_words import search_in_words, search_table
from sparseflow.training.search_cost import Spent, search_cost
from sparseflow.training.success import matching_density, success

LENET = {"fc1.weight": 235_200, "fc2.weight": 30_000, "fc3.weight": 1_000}


def full(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters() if p.dim() > 1}


def test_a_step_of_lenet_by_hand() -> None:
    model = sf.models.lenet_300_100()
    masks = full(model)
    layers = layer_flops(model, masks, torch.zeros(60, 784))
    assert {name: layer.product for name, layer in layers.items()} == dict(
        zip(masks, (2 * 60 * weights for weights in LENET.values()))
    )
    # The images need no gradient: the first layer has no dgrad.
    assert [layer.products for layer in layers.values()] == [2, 3, 3]
    total = {name: mask.numel() for name, mask in masks.items()}
    assert step_flops(layers, total, total) == 120 * (2 * 235_200 + 3 * 31_000)
    assert example_flops(layers, total, total) == 120 * 266_200


def test_convolutions_count_output_pixels_and_groups() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, groups=2))
    layers = layer_flops(model, full(model), torch.zeros(5, 2, 8, 8))
    # 4×4 and 2×2 pixels of output; 2 and 4 / 2 channels of input.
    assert layers["0.weight"] == LayerFlops(2.0 * (4 * 2 * 9) * 5 * 16, 2)
    assert layers["1.weight"] == LayerFlops(2.0 * (4 * 2 * 9) * 5 * 4, 3)


def test_operations_are_linear_in_what_is_kept_and_nothing_else() -> None:
    layers = {"a": LayerFlops(100.0, 2), "b": LayerFlops(40.0, 3)}
    total = {"a": 50, "b": 20}
    assert step_flops(layers, {"a": 0, "b": 0}, total) == 0
    assert step_flops(layers, {"a": 25, "b": 20}, total) == 100 + 120
    # Not by the overall density: 35 of 70 kept in two ways do not cost the same.
    assert step_flops(layers, {"a": 35, "b": 0}, total) != step_flops(layers, {"a": 15, "b": 20}, total)


def network(number: int, kept: int, steps: int = 100, **more: Any) -> dict[str, Any]:
    own = {"seed": 1, "round": number, "kept": {"a": kept}, "total": {"a": 100}, "steps": steps, "density": kept / 100}
    return {**own, "seconds": 10.0, "test_accuracy": 0.9, **more}


LAYERS = {"a": LayerFlops(1000.0, 3)}


def test_a_search_is_all_trainings_before_the_ticket() -> None:
    rate = 0.2
    trained = [network(r, round(100 * (1 - rate) ** r), 100 if r == 0 else 90) for r in range(4)]
    found = search_cost(trained, 3, 100, LAYERS, dynamic=False, settled=True)
    # 1 + 0.9 (0.8 + 0.64) of a dense training; the rounds were rewound to step 10.
    assert found.in_dense_trainings.flops == pytest.approx(1 + 0.9 * (0.8 + 0.64))
    assert found.in_dense_trainings.seconds == pytest.approx(3)
    assert (found.ticket / found.dense).flops == pytest.approx(0.9 * 0.51)
    assert found.inference == pytest.approx(0.51)
    # Equal seconds save nothing: never paid back by time.
    assert found.saved.seconds == 0 and found.pays_after.seconds is None
    assert found.pays_after.flops == pytest.approx((1 + 0.9 * 1.44) / (1 - 0.9 * 0.51))


def test_the_dense_network_was_found_for_nothing() -> None:
    found = search_cost([network(0, 100)], 0, 100, LAYERS, dynamic=False, settled=True)
    assert found.search == Spent(0.0, 0.0) and found.saved.flops == 0


def test_masks_that_change_in_training_are_found_by_it() -> None:
    trained = [network(0, 100), network(1, 10)]
    constant = search_cost(trained, 1, 100, LAYERS, dynamic=True, settled=True)
    assert constant.search.flops == 0 and (constant.ticket / constant.dense).flops == pytest.approx(0.1)
    # How dense it was on the way is not on record.
    gradual = search_cost(trained, 1, 100, LAYERS, dynamic=True, settled=False)
    assert gradual.ticket.flops is None and gradual.saved.flops is None and gradual.ticket.seconds == 10.0


def test_pruned_at_init_there_is_no_dense_time_to_compare_with() -> None:
    found = search_cost([network(1, 10)], 1, 100, LAYERS, dynamic=False, settled=True)
    assert found.search == Spent(0.0, 0.0) and found.dense.seconds is None and found.saved.seconds is None
    assert found.saved.flops == pytest.approx(0.9)


def test_the_least_matching_density_may_lose_three_tenths_of_a_point() -> None:
    rounds = [network(r, k, test_accuracy=a) for r, k, a in ((0, 100, 0.9), (1, 50, 0.8971), (2, 25, 0.8969))]
    assert matching_density(rounds) == 0.5
    assert matching_density(rounds[:1]) == 1.0


def test_seeds_succeed_or_fail_alone() -> None:
    rng = np.random.default_rng(0)
    chances = {"ticket": (0.95, 0.8), "dense": (0.9, 0.9), "reinit": (0.8, 0.8), "shuffle": (0.8, 0.8)}
    arms = {arm: np.stack([rng.random(3000) < p for p in each]) for arm, each in chances.items()}
    trained = [network(r, k, seed=s) for s in (3, 5) for r, k in ((0, 100), (1, 20 * (s - 2)))]
    found = success([3, 5], arms, trained)
    assert found.verdicts == {3: "ticket", 5: "not a ticket"} and found.rate == 0.5
    assert found.expected_density == pytest.approx((0.2 + 0.6) / 2)
    assert success([3, 5], arms, [one for one in trained if one["round"]]).expected_density is None


def test_the_report_says_both() -> None:
    trained = [network(0, 100), network(1, 20, seconds=5.0)]
    cost = search_cost(trained, 1, 100, LAYERS, dynamic=False, settled=True)
    rate = success([1], {"ticket": np.ones((1, 50))}, trained)
    content = {"round": 1, "costs": [cost.to_json()], "success": rate.to_json()}
    words = search_in_words(Search.model_validate(content))
    assert words == [
        "Finding the ticket took the FLOPs of 1.00 dense trainings and the time of 1.00. Training it takes 0.20× the "
        "FLOPs and 0.50× the time of a dense training, an inference 0.20× the FLOPs.",
        "Judged one by one, 0 of 1 seeds had a winning ticket, 1 undecided. Expected sparsity at the accuracy of "
        "dense: 80 %.",
    ]
    (row,) = search_table(Search.model_validate(content)).rows
    assert row[-2:] == ["1.2 trainings by FLOPs, 2.0 trainings by time", "undecided"]
    shown = summary({"name": "x", "task": "classification", "rounds": [], "search": content})
    assert words[0] in shown and words[1] in shown


def words_of(trained: list[dict[str, Any]], number: int, **how: bool) -> str:
    cost = search_cost(trained, number, 100, LAYERS, **{"dynamic": False, "settled": True, **how})
    content = {
        "round": number,
        "costs": [cost.to_json()],
        "success": success([1], {"ticket": np.ones((1, 50))}, trained).to_json(),
    }
    return search_in_words(Search.model_validate(content))[0]


def test_words_say_nothing_of_what_is_not_known() -> None:
    # Pruned at initialisation: no dense training to compare times with.
    assert words_of([network(1, 10)], 1) == (
        "Finding the ticket took no training besides its own. Training it takes 0.10× the FLOPs of a dense training, "
        "an inference 0.10× the FLOPs."
    )
    # A strong ticket, whose scores are dense.
    assert words_of([network(1, 50)], 1, settled=False) == (
        "Finding the ticket took no training besides its own. An inference takes 0.50× the FLOPs of the dense "
        "network's."
    )


@pytest.mark.parametrize("kind", ["lenet", "convolutions"])
def test_torch_counts_as_many_for_a_dense_step(kind: str) -> None:
    if kind == "lenet":
        model, x = sf.models.lenet_300_100(), torch.randn(7, 784)
    else:
        model = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten())
        model.append(nn.Linear(24, 3))
        x = torch.randn(5, 2, 8, 8)
    layers = layer_flops(model, full(model), x)
    total = {name: mask.numel() for name, mask in full(model).items()}
    with FlopCounterMode(display=False) as counted:
        torch.autograd.backward(model(x).sum())
    assert step_flops(layers, total, total) == counted.get_total_flops()
