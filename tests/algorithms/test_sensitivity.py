"""SNIP and GraSP against finite differences, and the traps of both."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparseflow as sf
from sparseflow.hardware.model import dense_weights
from sparseflow.masks import Scores
from sparseflow.training.probe import Batch
from sparseflow.training.sensitivity import grasp, snip

cross_entropy = F.cross_entropy


class Counted(nn.Sequential):
    """Counts how often any copy of it runs."""

    runs = 0

    def forward(self, x: Tensor) -> Tensor:
        type(self).runs += 1
        out: Tensor = super().forward(x)
        return out


def network(seed: int = 0) -> nn.Sequential:
    """Two layers in float64, smooth, so that differences are accurate."""
    torch.manual_seed(seed)
    return Counted(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def batch(examples: int = 12, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (examples,), generator=generator)


def loss_of(model: nn.Module, data: Batch, temperature: float = 1.0) -> float:
    x, y = data
    assert isinstance(x, Tensor)
    return float(cross_entropy(model(x) / temperature, y).detach())


def gradient_norm(model: nn.Module, data: Batch, temperature: float) -> float:
    """|g|²/2 by the prunable weights."""
    x, y = data
    weights = [p for n, p in model.named_parameters() if n.endswith("weight")]
    gradients = torch.autograd.grad(cross_entropy(model(x) / temperature, y), weights)
    return 0.5 * float(sum(g.pow(2).sum() for g in gradients))


def shrinking(model: nn.Module, name: str, place: tuple[int, int], measure: Callable[[], float]) -> float:
    """d measure / dε where the weight is multiplied by 1 - ε."""
    weight = model.get_parameter(name)
    before, found = weight[place].item(), []
    for epsilon in (1e-5, -1e-5):
        with torch.no_grad():
            weight[place] = before * (1 - epsilon)
        found.append(measure())
    with torch.no_grad():
        weight[place] = before
    return (found[0] - found[1]) / 2e-5


@pytest.mark.parametrize("seed", range(3))
def test_snip_is_what_the_loss_does_when_a_weight_shrinks(seed: int) -> None:
    model, data = network(seed), batch(seed=seed + 7)
    scores = snip(model, [data], cross_entropy)(dense_weights(model), 0)
    assert scores.absolute
    for name in ("0.weight", "2.weight"):
        for place in [(0, 0), (2, 3), (1, 4)]:
            slope = shrinking(model, name, place, lambda: loss_of(model, data))
            assert abs(float(scores.tensors[name][place])) == pytest.approx(abs(slope), rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("temperature", [1.0, 200.0])
def test_grasp_keeps_what_lets_the_gradient_flow(seed: int, temperature: float) -> None:
    model, data = network(seed), batch(seed=seed + 7)
    scores = grasp(model, [data], cross_entropy, temperature)(dense_weights(model), 0)
    assert not scores.absolute
    for name in ("0.weight", "2.weight"):
        for place in [(0, 0), (2, 3), (1, 4)]:
            slope = shrinking(model, name, place, lambda: gradient_norm(model, data, temperature))
            # To shrink a weight of a high score makes the norm smaller: that weight stays.
            assert float(scores.tensors[name][place]) == pytest.approx(-slope, rel=1e-5, abs=1e-14)


def kept_norm(model: nn.Module, masks: sf.Masks, data: Batch) -> float:
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    return gradient_norm(model, data, 200.0)


def test_grasp_with_the_wrong_sign_stops_the_gradient() -> None:
    torch.manual_seed(0)
    data = torch.randn(60, 6, dtype=torch.float64), torch.arange(60) % 3

    def pruned(sign: float) -> float:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 3)).double()
        right = grasp(model, [data], cross_entropy)

        def signed(weights: object, seed: int) -> Scores:
            scores = right(weights, seed)  # type: ignore[arg-type]
            return Scores({name: sign * tensor for name, tensor in scores.tensors.items()}, absolute=False)

        return kept_norm(model, sf.prune(model, 0.7, criterion=signed, floor=1), data)

    assert pruned(+1.0) > 3 * pruned(-1.0)


@pytest.mark.parametrize("criterion", [snip, partial(grasp, temperature=3.0)])
def test_how_the_examples_are_cut_into_batches_does_not_matter(criterion: Callable[..., sf.Masks]) -> None:
    model = network()
    x, y = batch()
    assert isinstance(x, Tensor)
    cut = [(x[:3], y[:3]), (x[3:11], y[3:11]), (x[11:], y[11:])]
    found = [criterion(model, data, cross_entropy)(dense_weights(model), 0).tensors for data in ([(x, y)], cut)]  # type: ignore[operator]
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-10, atol=1e-14)


def test_the_absolute_value_comes_after_the_mean() -> None:
    # Two examples whose gradients cancel: per batch they would not.
    model = nn.Linear(1, 1, bias=False)
    data = [(torch.ones(1, 1), torch.ones(1, 1)), (torch.ones(1, 1), -torch.ones(1, 1))]

    def linear(output: Tensor, y: Tensor) -> Tensor:
        return (output * y).mean()

    assert float(snip(model, data, linear)(dense_weights(model), 0).tensors["weight"]) == 0.0


@pytest.mark.parametrize(("batches", "snips", "grasps"), [(1, 1, 1), (3, 3, 5)])
def test_no_more_passes_than_are_needed(batches: int, snips: int, grasps: int) -> None:
    model, data = network(), [batch(4, seed) for seed in range(batches)]
    for criterion, runs in ((snip, snips), (grasp, grasps)):
        Counted.runs = 0
        criterion(model, data, cross_entropy)(dense_weights(model), 0)
        assert Counted.runs == runs


def test_the_mean_over_ranks_is_that_of_the_whole_batch() -> None:
    model = network()
    x, y = batch()
    assert isinstance(x, Tensor)
    halves = [snip(model, [data], cross_entropy)(dense_weights(model), 0) for data in [(x[:6], y[:6]), (x[6:], y[6:])]]
    whole = snip(model, [(x, y)], cross_entropy)(dense_weights(model), 0)
    for name, tensor in whole.tensors.items():
        mean = (halves[0].tensors[name] + halves[1].tensors[name]) / 2
        torch.testing.assert_close(mean, tensor, rtol=1e-12, atol=1e-15)


class Normed(nn.Module):
    """A convolution with BatchNorm, dropout, and a second convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.norm(self.conv1(x))), 0.5, self.training)
        out: Tensor = self.conv2(x).mean((2, 3))
        return out


@pytest.mark.parametrize("criterion", ["snip", "grasp", "synflow"])
def test_the_model_and_the_generators_stay_as_they_are(criterion: str) -> None:
    torch.manual_seed(0)
    model = Normed()
    with torch.no_grad():
        # A sign that sign() does not know, and a zero.
        model.conv1.weight[0, 0, 0, 0], model.conv1.weight[1, 0, 0, 0] = -0.0, 0.0
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rng = torch.get_rng_state()
    data = [(torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2)]
    masks = [sf.prune(model, 0.3, criterion=criterion, data=data, loss=cross_entropy, floor=1) for _ in range(2)]
    assert masks[0] == masks[1]
    assert torch.equal(torch.get_rng_state(), rng) and model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), before[name].reshape(-1).view(torch.uint8)), name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_at_init_batch_norm_goes_by_the_batch() -> None:
    torch.manual_seed(0)
    model = Normed()
    data = [(3 * torch.randn(8, 1, 8, 8) + 5, torch.arange(8) % 2)]
    scores = snip(model, data, cross_entropy)(dense_weights(model), 0).tensors["conv1.weight"]
    # What BatchNorm undoes has no gradient: the scale of a kernel, whose scores then cancel.
    assert float(scores.flatten(1).sum(1).abs().max()) < 1e-3 * float(scores.abs().sum())


def test_pruned_weights_are_zero_to_the_criterion() -> None:
    model, data = network(), batch()
    first = sf.prune(model, 0.5, criterion="snip", data=[data], loss=cross_entropy)
    second = sf.prune(model, 0.25, masks=first, criterion="snip", data=[data], loss=cross_entropy)
    with torch.no_grad():
        for name, mask in first.items():
            model.get_parameter(name).mul_(mask)
    assert second == sf.prune(model, 0.25, masks=first, criterion="snip", data=[data], loss=cross_entropy)
    assert second.issubset(first)


def test_a_sparse_model_is_scored_as_the_dense_one_it_stands_for() -> None:
    model, data = network().float(), batch()
    x, y = data
    assert isinstance(x, Tensor)
    masks = sf.prune(model, 0.5)
    options = {"criterion": "snip", "data": [(x.float(), y)], "loss": cross_entropy}
    dense = sf.prune(model, 0.25, masks=masks, **options)  # type: ignore[arg-type]
    sparse = sf.sparsify(model, masks, backend="dense-compact")
    assert sf.prune(sparse, 0.25, **options) == dense  # type: ignore[arg-type]


def test_a_layer_that_is_not_reached_scores_zero() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.used(x)
            return out

    model = Unused().double()
    for criterion in (snip, grasp):
        scores = criterion(model, [batch()], cross_entropy)(dense_weights(model), 0).tensors
        assert not bool(scores["unused.weight"].any()) and bool(scores["used.weight"].any())


@pytest.mark.parametrize(
    ("criterion", "given", "message"),
    [
        ("snip", {}, "criterion 'snip' needs data and loss, got none; pass data="),
        ("grasp", {"data": [batch()]}, "criterion 'grasp' needs loss, got none; pass loss="),
        ("synflow", {}, "criterion 'synflow' needs data, got none"),
        ("movement", {"data": [batch()]}, "criterion 'movement' needs start, got none"),
        ("snip", {"data": [], "loss": cross_entropy}, "expected at least one batch in data, got none"),
        ("snap", {}, "no criterion 'snap'; available: magnitude, random, snip, .*did you mean 'snip'"),
    ],
)
def test_what_is_missing_is_named(criterion: str, given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sf.prune(network(), 0.5, criterion=criterion, **given)  # type: ignore[arg-type]


def test_a_loss_that_is_not_finite_is_reported_by_criterion_layer_and_count() -> None:
    def broken(output: Tensor, y: Tensor) -> Tensor:
        return output.sum() * torch.inf

    message = r"expected finite scores from criterion 'snip', got inf or nan for \d+ of '0.weight', 15 of '2.weight'"
    with pytest.raises(ValueError, match=message):
        sf.prune(network(), 0.5, criterion="snip", data=[batch()], loss=broken)
