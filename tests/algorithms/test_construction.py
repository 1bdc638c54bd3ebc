"""Training by pruning: a random network, pruned, is the target, and nothing of it was trained."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sparseflow as sf


def target(*widths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(o, i, generator=generator) - 0.5 for i, o in itertools.pairwise(widths)]


def output(weights: list[Tensor], x: Tensor) -> Tensor:
    for weight in weights[:-1]:
        x = F.relu(x @ weight.t())
    return x @ weights[-1].t()


@pytest.mark.parametrize("widths", [(5, 3), (4, 6, 2), (3, 4, 4, 1)])
@pytest.mark.parametrize(("subset", "seed"), [(2, 0), (3, 1)])
def test_a_pruned_random_network_is_the_target(widths: tuple[int, ...], subset: int, seed: int) -> None:
    weights = target(*widths)
    found = sf.theory.prune_to_match(weights, samples=40, subset=subset, error=0.05, seed=seed)
    x = torch.randn(50, widths[0], generator=torch.Generator().manual_seed(2))
    assert found.worst <= 0.05
    scale = x.abs().sum(1).max() * max(widths) ** (len(widths) - 2)
    assert (found.model(x) - output(weights, x)).abs().max() <= found.worst * scale
    # Every unit between two layers has one input, every weight of the target k units of either sign.
    kept = found.ticket.masks.kept
    for number, weight in enumerate(weights):
        assert kept[f"{4 * number}.weight"] == 2 * 40 * weight.shape[1]
        assert kept[f"{4 * number + 2}.weight"] == 2 * subset * weight.numel()


def test_its_weights_are_those_that_were_drawn() -> None:
    weights = target(4, 3)
    found = sf.theory.prune_to_match(weights, samples=20, subset=2, error=0.2, seed=3)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in found.model.named_parameters():
        drawn, mask = torch.empty_like(parameter).uniform_(-1, 1, generator=generator), found.ticket.masks[name]
        assert torch.equal(parameter[mask], drawn[mask]) and not parameter[~mask].any()
        assert torch.equal(found.ticket.rewind[name], parameter)


def test_more_numbers_come_nearer() -> None:
    worst = [sf.theory.prune_to_match(target(4, 4), n, 2, error=9).worst for n in (4, 16, 64)]
    assert worst[0] > 3 * worst[1] > 9 * worst[2]


def test_what_cannot_be_done() -> None:
    with pytest.raises(ValueError, match="layer 0 has a weight that no 1 of 4 numbers meet within"):
        sf.theory.prune_to_match(target(4, 4), samples=4, subset=1, error=0.001)
    with pytest.raises(ValueError, match="layer 1 takes 5 inputs, the one before gives 3"):
        sf.theory.prune_to_match([torch.zeros(3, 2), torch.zeros(1, 5)], 9, 2, 0.1)
    with pytest.raises(ValueError, match=r"6 of about 60 numbers are .* choices"):
        sf.theory.prune_to_match(target(2, 2), 60, 6, 0.1)
    with pytest.raises(ValueError, match="expected 1 ≤ subset ≤ samples"):
        sf.theory.prune_to_match(target(2, 2), 3, 4, 0.1)
