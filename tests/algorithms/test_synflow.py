"""SynFlow: conservation, no collapse in many steps and collapse in one, and its traps."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparseflow as sf
from sparseflow.hardware.model import dense_weights
from sparseflow.masks import prune_tensors
from sparseflow.training.synflow import synflow

IMAGE = torch.zeros(1, 784)


def scores_of(model: nn.Module, sample: Tensor = IMAGE) -> dict[str, Tensor]:
    return dict(synflow(model, sample)(dense_weights(model), 0).tensors)


@pytest.fixture(scope="module")
def lenet() -> nn.Module:
    torch.manual_seed(0)
    model = sf.models.lenet_300_100()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def flow_through(model: nn.Module) -> float:
    """R of LeNet by hand."""
    value = torch.ones(784, dtype=torch.float64)
    for weight in dense_weights(model).values():
        value = weight.double().abs() @ value
    return float(value.sum())


def test_every_layers_scores_add_up_to_the_flow(lenet: nn.Module) -> None:
    expected = flow_through(lenet)
    for tensor in scores_of(lenet).values():
        assert tensor.dtype == torch.float64
        assert float(tensor.sum()) == pytest.approx(expected, rel=1e-12)


def test_what_flows_into_a_unit_flows_out(lenet: nn.Module) -> None:
    first, second, third = scores_of(lenet).values()
    torch.testing.assert_close(first.sum(1), second.sum(0), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(second.sum(1), third.sum(0), rtol=1e-12, atol=0.0)


def with_biases(model: nn.Module) -> dict[str, Tensor]:
    """The trap: biases left in."""
    copy = sf.models.lenet_300_100().double()
    copy.load_state_dict({name: tensor.double().abs() for name, tensor in model.state_dict().items()})
    weights = [copy.get_parameter(name) for name in dense_weights(model)]
    gradients = torch.autograd.grad(copy(torch.ones(1, 784, dtype=torch.float64)).sum(), weights)
    return {name: g * w.detach() for name, g, w in zip(dense_weights(model), gradients, weights)}


def test_with_biases_nothing_is_conserved(lenet: nn.Module) -> None:
    sums = [float(tensor.sum()) for tensor in with_biases(lenet).values()]
    assert max(sums) > 1.001 * min(sums)


class Normed(nn.Module):
    """Convolutions with BatchNorm whose statistics are not those of the start, pooling and a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.fc = nn.Linear(4 * 16, 3)
        with torch.no_grad():
            self.norm.weight.copy_(torch.tensor([-1.0, 0.5, 2.0, 0.0]))
            self.norm.running_mean.fill_(3.0)  # type: ignore[operator,union-attr]
            self.norm.running_var.fill_(2.0)  # type: ignore[operator,union-attr]

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv1(x)))
        out: Tensor = self.fc(F.max_pool2d(x + F.relu(self.conv2(x)), 2).flatten(1))
        return out


def test_it_is_conserved_through_batch_norm_and_pooling() -> None:
    torch.manual_seed(0)
    model = Normed()
    found = scores_of(model, torch.zeros(5, 2, 8, 8))
    # What flows in beside the residual connection flows out of the last layer.
    assert float(found["conv1.weight"].sum()) == pytest.approx(float(found["fc.weight"].sum()), rel=1e-12)
    assert 0 < float(found["conv2.weight"].sum()) < float(found["fc.weight"].sum())


def paths(masks: sf.Masks) -> float:
    count = torch.ones(784, dtype=torch.float64)
    for mask in masks.values():
        count = mask.double() @ count
    return float(count.sum())


@pytest.mark.parametrize("exponent", [2.0, 4.25])
def test_a_hundred_steps_do_not_collapse(exponent: float) -> None:
    torch.manual_seed(0)
    model = sf.models.lenet_300_100()
    masks = sf.prune(model, 10**-exponent, criterion="synflow", data=[(IMAGE, torch.zeros(1))])
    assert masks.nnz == round(10**-exponent * 266_200)
    assert all(masks.kept.values()) and paths(masks) > 0


@pytest.mark.parametrize("seed", range(3))
def test_one_step_collapses(seed: int) -> None:
    torch.manual_seed(seed)
    model = sf.models.lenet_300_100()
    masks = prune_tensors(dense_weights(model), density=1e-2, criterion=synflow(model, IMAGE), floor=0)
    assert masks.kept["fc1.weight"] == 0 and paths(masks) == 0


def test_float32_is_not_enough_for_a_deep_network() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(64, 64, bias=False) for _ in range(40)]
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(16)
    found = scores_of(model, torch.zeros(1, 64))
    sums = [float(tensor.sum()) for tensor in found.values()]
    assert max(sums) == pytest.approx(min(sums), rel=1e-12)
    assert max(sums) > torch.finfo(torch.float32).max


def small() -> nn.Module:
    torch.manual_seed(0)
    return sf.models.lenet_300_100(inputs=8, classes=4)


def test_a_rate_prunes_as_many_as_one_pruning() -> None:
    model, data = small(), [(torch.zeros(1, 8), torch.zeros(1))]
    first = sf.prune(model, 0.1, criterion="synflow", data=data)
    second = sf.prune(model, rate=0.2, masks=first, criterion="synflow", data=data)
    assert first.nnz == 3_280 and second.nnz == 3_280 - 656 and second.issubset(first)


def test_dead_weights_are_never_chosen_again() -> None:
    # Half of the layer is cut off: its scores are 0, as those of pruned weights, and count as ties.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model[2].weight[:, 4:] = 0.0  # type: ignore[index,operator]
    before = sf.Masks({"0.weight": torch.rand(8, 8) < 0.7, "2.weight": torch.ones(2, 8, dtype=torch.bool)})
    masks = sf.prune(model, 0.3, masks=before, criterion="synflow", data=[(torch.zeros(1, 8), torch.zeros(1))])
    assert masks.issubset(before) and masks.nnz == round(0.3 * 80)


def test_patterns_and_other_allocations_are_reached_in_steps() -> None:
    model, data = small(), [(torch.zeros(1, 8), torch.zeros(1))]
    masks = sf.prune(model, 0.5, criterion="synflow", data=data, pattern=sf.NM(2, 4))
    assert bool((masks["fc1.weight"].unflatten(1, (-1, 4)).sum(2) == 2).all())
    assert sf.prune(model, 0.1, criterion="synflow", data=data, allocation="uniform").kept["fc3.weight"] == 40


def test_tokens_are_refused() -> None:
    model = sf.models.gpt(11, context=8, layers=1, heads=1, width=4)
    with pytest.raises(ValueError, match=r"synflow: expected an input of floating-point numbers.*got torch.int64"):
        sf.prune(model, 0.5, criterion="synflow", data=[(torch.zeros(1, 8, dtype=torch.int64), torch.zeros(1))])


def test_rates_by_layer_are_refused(lenet: nn.Module) -> None:
    with pytest.raises(ValueError, match="criterion 'synflow' prunes in many steps, by no rates"):
        sf.prune(lenet, rate=0.1, criterion="synflow", data=[(IMAGE, IMAGE)], allocation="layerwise")
