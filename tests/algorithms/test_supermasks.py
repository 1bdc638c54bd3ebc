"""Masks learned over frozen weights: gradients of the scores, exact counts, constants and scales."""

import math

import pytest
import torch
from torch import Tensor

from sparseflow.masks import Masks
from sparseflow.masks.supermasks import EdgePopup, Supermask, freeze

SHAPES = {"fc1.weight": (13, 7), "conv.weight": (4, 3, 3, 3), "fc2.weight": (1, 10)}
FAN_IN = {"fc1.weight": 7, "conv.weight": 27, "fc2.weight": 10}


def drawn(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}


def with_gradients(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: score.requires_grad_() for name, score in scores.items()}


def gradient_oracle(effective: dict[str, Tensor], scores: dict[str, Tensor], frozen: dict[str, Tensor]) -> bool:
    """ds = dL/dw_eff · W · sign(s), for kept and pruned weights alike."""
    incoming = drawn(9)
    total = torch.stack([(effective[name] * incoming[name]).sum() for name in effective]).sum()
    found = torch.autograd.grad(total, list(scores.values()))
    return all(
        torch.equal(one, incoming[name] * frozen[name] * score.detach().sign())
        for one, (name, score) in zip(found, scores.items())
    )


@pytest.mark.parametrize("allocation", ["layerwise", "global"])
@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_edge_popup_passes_the_gradient_to_the_magnitude(allocation: str, density: float, seed: int) -> None:
    method = EdgePopup(density, allocation)  # type: ignore[arg-type]
    scores, frozen = with_gradients(drawn(seed)), method.frozen(drawn(7), FAN_IN)
    assert gradient_oracle(method.training_weights(frozen, scores), scores, frozen)


def test_the_gradient_without_the_sign_is_seen() -> None:
    # The trap: straight through to s while |s| is ranked.
    method = EdgePopup(0.5)
    scores, frozen = with_gradients(drawn(0)), method.frozen(drawn(7), FAN_IN)
    masks = method.masks(scores)
    wrong = {name: frozen[name] * (masks[name] + score - score.detach()) for name, score in scores.items()}
    assert not gradient_oracle(wrong, scores, frozen)


@pytest.mark.parametrize("density", [0.01, 0.3, 0.5, 0.9, 1.0])
def test_edge_popup_counts(density: float) -> None:
    kept = EdgePopup(density).masks(drawn(3)).kept
    sizes = {name: math.prod(shape) for name, shape in SHAPES.items()}
    assert kept == {name: size - int((1 - density) * size) for name, size in sizes.items()}
    everywhere = EdgePopup(density, "global").masks(drawn(3))
    assert abs(everywhere.nnz - density * everywhere.total) <= 1


def test_only_the_order_of_magnitudes_matters() -> None:
    # Layers of unlike scores, which only a global ranking compares.
    scores = {name: score * scale for (name, score), scale in zip(drawn(4).items(), (0.1, 1.0, 5.0))}
    for method in (EdgePopup(0.3), EdgePopup(0.3, "global")):
        masks = method.masks(scores)
        assert masks == method.masks({name: -(score**3) for name, score in scores.items()})
        least = min(float(s[masks[name]].abs().min()) for name, s in scores.items() if masks[name].any())
        most = max(float(s[~masks[name]].abs().max()) for name, s in scores.items())
        assert (least > most) == (method.allocation == "global")


def test_signed_constants() -> None:
    weights = {**drawn(5), "fc2.weight": torch.zeros(1, 10, dtype=torch.float64)}
    for name, constant in EdgePopup(0.25, frozen_weights="scaled_signed_constant").frozen(weights, FAN_IN).items():
        expected = math.sqrt(2 / FAN_IN[name]) * math.sqrt(1 / 0.25)
        torch.testing.assert_close(constant.abs(), torch.full_like(constant, expected), rtol=1e-15, atol=0)
        # A weight of exactly zero has a sign too.
        assert torch.equal(constant > 0, weights[name] >= 0)
    for name, constant in EdgePopup(0.25).frozen(weights, FAN_IN).items():
        assert float(constant.abs().min()) == pytest.approx(math.sqrt(2 / FAN_IN[name]), rel=1e-15)
    built = freeze(weights, FAN_IN, "built", 1.0)
    assert all(torch.equal(built[name], weights[name]) for name in weights)


def test_supermask_gradient_passes_the_drawing() -> None:
    method = Supermask(rescale=False)
    scores, frozen = with_gradients(drawn(1)), method.frozen(drawn(7), FAN_IN)
    effective = method.training_weights(frozen, scores)
    incoming = drawn(9)
    total = torch.stack([(effective[name] * incoming[name]).sum() for name in effective]).sum()
    for found, (name, score) in zip(torch.autograd.grad(total, list(scores.values())), scores.items()):
        chance = score.detach().sigmoid()
        torch.testing.assert_close(found, incoming[name] * frozen[name] * chance * (1 - chance), rtol=1e-12, atol=0)
        used = effective[name].detach()
        assert bool((used == frozen[name]).logical_or(used == 0).all())


def test_supermask_draws_by_its_probabilities() -> None:
    method, name = Supermask(rescale=False), "w"
    scores = {name: torch.tensor([-2.0, 0.0, 1.0]).repeat(4000, 1)}
    ones = {name: torch.ones(4000, 3)}
    torch.manual_seed(0)
    first, second = (method.training_weights(ones, scores)[name] for _ in range(2))
    assert not torch.equal(first, second)
    # Five standard deviations of the mean of 8000 draws.
    assert (torch.cat([first, second]).mean(0) - scores[name][0].sigmoid()).abs().max() < 5 * 0.5 / math.sqrt(8000)


def rescaled_oracle(used: Tensor, frozen: Tensor) -> bool:
    """A layer's weights times its number of weights over its number of ones, of the mask that was used."""
    expected = frozen * (used.numel() / int(used.count_nonzero()))
    return bool(((used - expected).abs()[used != 0] < 1e-12).all())


def test_rescaling_is_by_the_mask_that_is_used() -> None:
    torch.manual_seed(0)
    score, frozen = torch.full((5, 5), 0.3, dtype=torch.float64), drawn(2)["fc1.weight"][:5, :5]
    used = Supermask().training_weights({"w": frozen}, {"w": score.requires_grad_()})["w"].detach()
    assert 0 < int(used.count_nonzero()) < 25 and rescaled_oracle(used, frozen)
    # The trap: by the expected mask.
    assert not rescaled_oracle(torch.where(used != 0, frozen / score.detach().sigmoid(), 0.0), frozen)
    mask = torch.rand(5, 5) < 0.4
    kept = Supermask().weights({"w": frozen}, Masks({"w": mask}))["w"]
    assert rescaled_oracle(kept, frozen) and torch.equal(kept != 0, mask)


def test_an_empty_layer_stays_finite() -> None:
    empty = Masks({"w": torch.zeros(3, 3, dtype=torch.bool)})
    assert not Supermask().weights({"w": torch.ones(3, 3)}, empty)["w"].any()


def test_numbers_and_names_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"EdgePopup: expected a density in \(0, 1\], got 0"):
        EdgePopup(0)
    with pytest.raises(ValueError, match="EdgePopup: expected allocation to be one of layerwise, global, got 'erk'"):
        EdgePopup(0.5, "erk")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Supermask: expected frozen_weights to be one of built, signed_constant, got"):
        Supermask(frozen_weights="scaled_signed_constant")
