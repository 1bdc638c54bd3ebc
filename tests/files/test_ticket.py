"""Ticket and Weights themselves."""

from pathlib import Path

import pytest
import torch
from raw_files import small_ticket
from torch import Tensor, nn
from torch.testing import assert_close

from sparseflow.files import Ticket, Weights, load, save
from sparseflow.hardware.plan import sparsify
from sparseflow.masks.masks import Masks


def ticket_of(weight: Tensor, mask: Tensor, name: str = "w") -> Ticket:
    return Ticket(Masks({name: mask}), {name: weight}, None, {})


def test_density_and_round() -> None:
    ticket = small_ticket()
    assert ticket.density == (7 + 3 + 15) / (15 + 400 + 16)
    assert ticket.round == 2
    with pytest.raises(ValueError, match=r"integer under 'round' .* got None; its keys are: none"):
        _ = ticket_of(torch.ones(1), torch.ones(1, dtype=torch.bool)).round


def test_a_mask_needs_its_tensor() -> None:
    mask = torch.ones(2, dtype=torch.bool)
    with pytest.raises(ValueError, match="w"):
        Ticket(Masks({"w": mask}), {}, None, {})
    with pytest.raises(ValueError, match="shape"):
        Weights({"w": torch.ones(3)}, Masks({"w": mask}), {})


def test_the_digest_sees_names_dtypes_shapes_masks_and_kept_values() -> None:
    weight, mask = torch.tensor([1.0, 0.0]), torch.tensor([True, False])
    others = [
        ticket_of(weight, mask),
        ticket_of(weight, mask, name="v"),
        ticket_of(weight.double(), mask),
        ticket_of(weight.reshape(1, 2), mask.reshape(1, 2)),
        ticket_of(weight, torch.tensor([True, True])),
        ticket_of(torch.tensor([2.0, 0.0]), mask),
        ticket_of(torch.tensor([-0.0, 0.0]), mask),
        Ticket(Masks({}), {"w": weight}, None, {}),
        Ticket(Masks({}), {"v": weight}, None, {}),
        Ticket(Masks({}), {"w": weight.reshape(1, 2)}, None, {}),
        Ticket(Masks({}), {"w": weight.view(torch.int32)}, None, {}),
    ]
    assert len({ticket.digest for ticket in others}) == len(others)


def test_the_digest_does_not_see_order_strides_and_the_sign_of_pruned_zeros() -> None:
    ticket = small_ticket()
    state = {name: ticket.rewind[name] for name in reversed(ticket.rewind)}
    state["fc.weight"] = torch.where(ticket.masks["fc.weight"], state["fc.weight"], -0.0).t().contiguous().t()
    assert Ticket(ticket.masks, state, None, {}).digest == ticket.digest


def test_into_loads_everything() -> None:
    source, target = (
        nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)),
        nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)),
    )
    source(torch.randn(5, 3))
    assert Weights(dict(source.state_dict()), Masks({}), {}).into(target) is target
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, target.state_dict()[name])


def test_into_names_what_does_not_fit_and_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {
        "0.weight": torch.zeros(3, 2),
        "0.bias": torch.zeros(2),
        "1.weight": torch.zeros(2, 2),
        "x": torch.zeros(1),
    }
    message = r"missing '1\.bias'; unexpected 'x'; '0\.weight' has shape \(3, 2\), the model's has \(2, 3\)$"
    with pytest.raises(ValueError, match=message):
        Weights(state, Masks({}), {}).into(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_sparse_models_are_saved_and_loaded_under_dense_names(tmp_path: Path) -> None:
    mask = torch.tensor([[True, False, True], [False, True, False]])
    model = sparsify(nn.Sequential(nn.Linear(3, 2)), {"0.weight": mask}, backend="dense-compact")
    save(model, tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert isinstance(loaded, Weights)
    assert loaded.masks == {"0.weight": mask}
    other = sparsify(nn.Sequential(nn.Linear(3, 2)), {"0.weight": mask}, backend="dense")
    x = torch.randn(4, 3)
    assert_close(loaded.into(other)(x), model(x))
    assert_close(loaded.into(nn.Sequential(nn.Linear(3, 2)))(x), model(x))


def test_into_refuses_weights_that_the_model_has_pruned() -> None:
    mask = torch.tensor([[True, False, True], [False, True, False]])
    model = sparsify(nn.Sequential(nn.Linear(3, 2)), {"0.weight": mask}, backend="dense")
    state = {"0.weight": torch.ones(2, 3), "0.bias": torch.ones(2)}
    with pytest.raises(ValueError, match=r"3 nonzero weights of '0\.weight' lie where the model has pruned"):
        Weights(state, Masks({}), {}).into(model)
