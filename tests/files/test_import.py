"""Checkpoints of other tools, read with their masks; and what cannot be."""

import json
from pathlib import Path

import pytest
import torch
from command_line import CommandLine
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

import sparseflow as sf
from sparseflow.integrations import cerebras, load_masked, read_masked


@pytest.fixture
def sparseflow(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capfd)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(45, 4))


def pruned() -> nn.Sequential:
    model = network()
    prune.l1_unstructured(model[0], "weight", 0.5)
    prune.random_unstructured(model[2], "weight", 0.8)
    return model


def assert_is(found: sf.Weights, model: nn.Sequential) -> None:
    """What the pruned model computes with is what was found, and a sparse model computes the same."""
    for place in (0, 2):
        name = f"{place}.weight"
        assert torch.equal(found.masks[name], model[place].weight_mask.bool())
        assert torch.equal(found.state[name], model[place].weight)
    assert found.state.keys() == network().state_dict().keys()
    x = torch.randn(6, 3, 5, 5)
    sparse = sf.sparsify(network(), found.masks, backend="dense-compact")
    torch.testing.assert_close(found.into(sparse)(x), model(x))


@pytest.mark.parametrize("inside", [(), ("state_dict",), ("model", "state_dict")])
@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod."])
def test_torch_prune(inside: tuple[str, ...], wrapper: str, tmp_path: Path) -> None:
    model = pruned()
    found: object = {f"{wrapper}{name}": tensor for name, tensor in model.state_dict().items()}
    for key in reversed(inside):
        found = {"epoch": 3, key: found}
    torch.save(found, tmp_path / "model.pt")
    assert_is(load_masked(tmp_path / "model.pt"), model)


@pytest.mark.parametrize("mask", ["weight_mask", "_weight_mask"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.bfloat16])
def test_masks_beside_weights_that_are_not_zero_there(mask: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model, state = pruned(), dict[str, torch.Tensor]()
    for place in (0, 2):
        state |= {f"{place}.weight": model[place].weight_orig.detach(), f"{place}.bias": model[place].bias.detach()}
        state[f"{place}.{mask}"] = model[place].weight_mask.to(dtype)
    save_file(state, tmp_path / "model.safetensors")
    assert_is(load_masked(tmp_path / "model.safetensors"), model)


def test_zeros_count_as_pruned_where_it_is_said_so() -> None:
    model = pruned()
    for place in (0, 2):
        prune.remove(model[place], "weight")
    state = model.state_dict()
    with pytest.raises(ValueError, match=r"found no masks.*--zeros"):
        read_masked(state)
    found = read_masked(state, zeros=True)
    assert found.masks == {name: state[name] != 0 for name in ("0.weight", "2.weight")}
    with pytest.raises(ValueError, match="no weight has exact zeros"):
        read_masked({"fc.weight": torch.ones(2, 2), "fc.bias": torch.zeros(2)}, zeros=True)


def test_what_is_called_a_mask_and_is_none_stays_a_tensor() -> None:
    found = read_masked(
        {
            "attn.bias": torch.ones(3),
            "attn.bias_mask": torch.full((2, 2), -1.0),
            "scale_orig": torch.ones(3),
            "fc.weight_orig": torch.ones(2, 2),
            "fc.weight_mask": torch.eye(2),
        }
    )
    assert found.masks == {"fc.weight": torch.eye(2).bool()}
    assert found.state.keys() == {"attn.bias", "attn.bias_mask", "scale_orig", "fc.weight"}
    assert torch.equal(found.state["fc.weight"], torch.eye(2))


def test_the_command(tmp_path: Path, sparseflow: CommandLine) -> None:
    model = pruned()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    said = sparseflow("import", tmp_path / "model.pt", tmp_path / "model.safetensors", "--json")
    found = sf.load(tmp_path / "model.safetensors")
    assert said.status == 0 and isinstance(found, sf.Weights)
    assert_is(found, model)
    about = json.loads(said.out)
    assert about["masks"] == 2 and about["digest"] == found.masks.digest
    assert json.loads(sparseflow("inspect", tmp_path / "model.safetensors", "--json").out)["masks"] == about["digest"]


def test_cerebras_and_back(tmp_path: Path) -> None:
    model = network()
    masks = sf.prune(model, density=0.3)
    cerebras.export(sf.sparsify(model, masks, backend="dense"), tmp_path / "model.mdl")
    assert load_masked(tmp_path / "model.mdl").masks == masks


class Unfit:
    """No tensor."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"fc.weight_orig": torch.ones(2, 2), "fc.weight_mask": torch.full((2, 2), 0.5)}, "zeros and ones"),
        ({"epoch": 3}, "expected tensors, or a state dict"),
        ([torch.ones(2)], "expected a state dict or weights, got a list"),
        ({"state_dict": Unfit()}, "without other objects"),
    ],
)
def test_other_files_are_refused(content: object, message: str, tmp_path: Path, sparseflow: CommandLine) -> None:
    path = tmp_path / "model.pt"
    torch.save(content, path)
    error = sparseflow("import", path, tmp_path / "out.safetensors").error
    assert message in error and error.count(str(path)) == 1
    assert not (tmp_path / "out.safetensors").exists()


def test_missing_and_broken_files_are_refused(tmp_path: Path, sparseflow: CommandLine) -> None:
    target = tmp_path / "out.safetensors"
    assert "found no such file" in sparseflow("import", tmp_path / "none.pt", target).error
    (tmp_path / "broken.pt").write_bytes(b"not a checkpoint")
    assert "expected safetensors or a state dict" in sparseflow("import", tmp_path / "broken.pt", target).error
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 40)
    assert "broken.safetensors" in sparseflow("import", tmp_path / "broken.safetensors", target).error
    assert "expected compact or dense" in sparseflow("import", tmp_path / "broken.pt", target, "--format", "x").error
