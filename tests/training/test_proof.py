"""Each rule of a round is broken once, and the proof must name the parameter."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tiny_task import Net, tiny_trainer
from torch import Tensor, nn

import sparseflow as sf
from sparseflow.hardware.layers import SparseLinear
from sparseflow.hardware.model import dense_state
from sparseflow.training import search
from sparseflow.training.proof import ProofError, prove_equal_to_dense, prove_pruned, prove_rewound

Sparse = tuple[nn.Module, sf.Masks, dict[str, Tensor]]


@pytest.fixture(params=["dense", "dense-compact"])
def sparse(request: pytest.FixtureRequest) -> Sparse:
    """A sparse model, its masks and the state it was rewound to."""
    torch.manual_seed(0)
    model: nn.Module = Net()
    masks = sf.prune(model, 0.5, floor=1)
    rewind = dense_state(model)
    model = sf.sparsify(model, masks, backend=request.param)
    return model, masks, rewind


def layer(model: nn.Module) -> SparseLinear:
    found = model.get_submodule("fc1")
    assert isinstance(found, SparseLinear)
    return found


def test_a_sound_round_is_proved(sparse: Sparse) -> None:
    model, masks, rewind = sparse
    before = dense_state(model)
    prove_rewound(model, masks, rewind)
    prove_pruned(model, masks)
    prove_equal_to_dense(model, torch.randn(5, 8))
    assert all(torch.equal(before[name], tensor) for name, tensor in dense_state(model).items())
    assert model.training and all(parameter.grad is None for parameter in model.parameters())


def nudge_survivor(model: nn.Module) -> None:
    values = layer(model).values
    largest = values.detach().abs().argmax()
    with torch.no_grad():
        values.view(-1)[largest] = torch.nextafter(values.view(-1)[largest], torch.tensor(9.0))


def nudge_bias(model: nn.Module) -> None:
    with torch.no_grad():
        layer(model).get_parameter("bias")[3] += 1e-6


def nudge_statistics(model: nn.Module) -> None:
    model.get_buffer("norm.running_mean")[0] += 1e-6


@pytest.mark.parametrize(
    ("nudge", "name"),
    [(nudge_survivor, "fc1.weight"), (nudge_bias, "fc1.bias"), (nudge_statistics, "norm.running_mean")],
)
def test_one_bit_besides_the_rewind_point_is_found(
    sparse: Sparse, nudge: Callable[[nn.Module], None], name: str
) -> None:
    model, masks, rewind = sparse
    nudge(model)
    with pytest.raises(ProofError, match=f"{name}: survivors differ"):
        prove_rewound(model, masks, rewind)


def test_a_negative_zero_is_not_a_rewound_zero() -> None:
    model, (name, weight) = nn.Linear(2, 2), ("weight", torch.tensor([[1.0, -0.0], [2.0, 3.0]]))
    masks = {name: torch.tensor([[True, False], [True, True]])}
    with torch.no_grad():
        model.weight.copy_(weight)
    with pytest.raises(ProofError, match=r"weight: .* a pruned weight is not zero"):
        prove_rewound(model, masks, dense_state(model))


def test_a_pruned_weight_that_moved_is_found() -> None:
    torch.manual_seed(0)
    model: nn.Module = Net()
    masks = sf.prune(model, 0.5, floor=1)
    model = sf.sparsify(model, masks, backend="dense")
    with torch.no_grad():
        layer(model).values.view(-1)[int((~masks["fc1.weight"]).view(-1).int().argmax())] = 1e-30
    with pytest.raises(ProofError, match=r"fc1\.weight: a pruned weight is not zero"):
        prove_pruned(model, masks)


def test_a_weight_that_is_not_finite_is_found(sparse: Sparse) -> None:
    model, masks, _ = sparse
    with torch.no_grad():
        layer(model).values.fill_(float("nan"))
    with pytest.raises(ProofError, match=r"fc1\.weight: a weight is not finite"):
        prove_pruned(model, masks)


def test_another_mask_and_a_dense_layer_are_found(sparse: Sparse) -> None:
    model, masks, _ = sparse
    other = {**masks, "fc2.weight": torch.ones(3, 16, dtype=torch.bool)}
    with pytest.raises(ProofError, match=r"fc2\.weight: the layer has another mask"):
        prove_pruned(model, other)
    with pytest.raises(ProofError, match=r"fc1\.weight: its mask prunes, but the layer is dense"):
        prove_pruned(sf.densify(copy.deepcopy(model)), masks)


def test_a_wrong_forward_is_found(sparse: Sparse, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, _ = sparse
    forward = SparseLinear.forward
    monkeypatch.setattr(SparseLinear, "forward", lambda self, x: forward(self, x) * 1.001)
    with pytest.raises(ProofError, match="the model's output differs"):
        prove_equal_to_dense(model, torch.randn(5, 8))


class _DoubledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return 2 * gradients[0]


def test_a_wrong_gradient_is_found(sparse: Sparse, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, _ = sparse
    forward = SparseLinear.forward

    def doubled(self: SparseLinear, x: Tensor) -> Tensor:
        out: Tensor = _DoubledGradient.apply(forward(self, x))  # type: ignore[no-untyped-call]
        return out

    monkeypatch.setattr(SparseLinear, "forward", doubled)
    with pytest.raises(ProofError, match=r"the gradient of fc1\.weight differs"):
        prove_equal_to_dense(model, torch.randn(5, 8))


def test_a_missing_gradient_is_found(sparse: Sparse, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, _ = sparse
    forward = SparseLinear.forward
    monkeypatch.setattr(SparseLinear, "forward", lambda self, x: forward(self, x).detach().requires_grad_())
    with pytest.raises(ProofError, match=r"fc1\.weight: only the dense model gives it a gradient"):
        prove_equal_to_dense(model, torch.randn(5, 8))


class Rounded(nn.Linear):
    """Multiplies in float64 and rounds: as good as float32, but not the same bits."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input.double(), self.weight.double(), self.bias.double()).float()


def test_rounding_at_the_kink_of_a_relu_is_no_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    # Units that lie exactly at the kink, up to rounding: as in a deep network, where some always do.
    torch.manual_seed(0)
    first, sample = nn.Linear(300, 2000), torch.randn(64, 300)
    with torch.no_grad():
        # Some units are at their kink for one example.
        products = first(sample)[3, :20]
        first.bias[:20] -= products
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(2000, 10))
    sparse = sf.sparsify(model, sf.prune(model, 1.0), backend="dense")
    monkeypatch.setattr(nn.Linear, "forward", Rounded.forward)
    prove_equal_to_dense(sparse, sample)


def test_a_rewind_point_that_trains_along_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    # The classic trap: theta_0 kept by reference.
    monkeypatch.setattr(search, "dense_state", lambda model: dict(model.state_dict()))
    round = next(iter(sf.rounds(Net(), rounds=1, rate=0.5, floor=1)))
    with torch.no_grad():
        for parameter in round.model.parameters():
            parameter.mul_(0.5)
    with pytest.raises(ProofError, match=r"fc1\.weight: the rewind point has changed"):
        round.finish()


def test_pruned_weights_that_move_during_training_stop_the_search() -> None:
    def spoil(event: dict[str, object]) -> None:
        for module in trainer.model.modules():
            if isinstance(module, SparseLinear) and event["step"] == 6:
                module.values.data.add_(1e-3)

    trainer = tiny_trainer(listener=spoil)
    with pytest.raises(ProofError, match=r"fc1\.weight: a pruned weight is not zero"):
        list(sf.imp(trainer, rounds=1, rate=0.5, floor=1, backend="dense"))


def test_a_model_that_was_not_rewound_stops_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "load_dense_state", lambda model, state: None)
    with pytest.raises(ProofError, match="survivors differ from the rewind point"):
        list(sf.imp(tiny_trainer(), rounds=1, rate=0.5, floor=1, backend="dense"))
