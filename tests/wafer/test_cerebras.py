"""Checkpoints and configs for Cerebras systems: what is written, read back, and refused."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from command_line import CommandLine
from torch import nn

import sparseflow as sf
from sparseflow.files import Ticket, Weights
from sparseflow.integrations import cerebras
from sparseflow.integrations.cerebras_config import Rule, densities, read_sparsity, sparsity_block
from sparseflow.masks.masks import Masks
from sparseflow.models import gpt, lenet_300_100

FILTERS = ["*proj_[qkv]_dense_layer.weight", "*proj_output_dense_layer.weight", "*linear_layer.weight"]


@pytest.fixture
def sparseflow(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capfd)


@pytest.fixture
def ticket() -> Ticket:
    rounds = sf.rounds(lenet_300_100(inputs=16), rounds=1, rate=0.8)
    next(rounds).finish()
    return next(rounds).ticket()


def assert_same(found: Weights, state: dict[str, torch.Tensor], masks: Masks) -> None:
    assert found.masks == masks and found.state.keys() == state.keys()
    for name, tensor in state.items():
        assert found.state[name].dtype == tensor.dtype
        assert torch.equal(found.state[name], tensor), name


def test_a_ticket_is_read_back_exactly(ticket: Ticket, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_0.mdl"
    block = cerebras.export(ticket, path)
    assert block == tmp_path / "checkpoint_0.yaml"
    assert_same(cerebras.load(path), dict(ticket.rewind), ticket.masks)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint_0.mdl", "checkpoint_0.yaml"]
    rules = read_sparsity(block)
    found = densities(rules, {name: tensor.shape for name, tensor in ticket.rewind.items()})
    assert found == pytest.approx(ticket.masks.densities) and {rule.algorithm for rule in rules} == {"static"}


@pytest.mark.parametrize("backend", ["dense", "dense-compact"])
def test_a_sparse_model_with_tied_weights_is_read_back_exactly(backend: str, tmp_path: Path) -> None:
    model = gpt(vocabulary=11, context=8, layers=1, heads=2, width=16, tied=True)
    masks = sf.prune(model, density=0.3)
    sf.sparsify(model, masks, backend=backend)
    cerebras.export(model, tmp_path / "model.mdl")
    found = cerebras.load(tmp_path / "model.mdl")
    assert found.masks == masks
    assert torch.equal(found.state["head.weight"], found.state["tokens.weight"])
    found.into(sf.densify(model))


def test_a_dense_model_takes_masks_beside_it_and_other_dtypes_survive(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Linear(6, 5).bfloat16(), nn.BatchNorm1d(5), nn.Linear(5, 3).double(), nn.Linear(3, 2).half()
    )
    mask = torch.rand(5, 6) < 0.5
    with torch.no_grad():
        model[0].weight.mul_(mask)
    cerebras.export(model, tmp_path / "model.mdl", masks={"0.weight": mask})
    state = dict(model.state_dict())
    # The count of BatchNorm has no dimensions.
    assert state["1.num_batches_tracked"].shape == ()
    assert_same(cerebras.load(tmp_path / "model.mdl"), state, Masks({"0.weight": mask}))


def test_pruned_zeros_are_positive_and_kept_zeros_stay_kept(tmp_path: Path) -> None:
    weight, mask = torch.tensor([[-0.0, 0.0, 1.0]]), torch.tensor([[False, True, True]])
    cerebras.export(Weights({"w": weight}, Masks({"w": mask}), {}), tmp_path / "w.mdl")
    found = cerebras.load(tmp_path / "w.mdl")
    assert not torch.signbit(found.state["w"]).any() and torch.equal(found.masks["w"], mask)


def test_the_layout_is_that_of_their_checkpoints(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    mask = weight > 0
    cerebras.export(
        Weights({"fc.weight": weight, "n": torch.tensor(3)}, Masks({"fc.weight": mask}), {}), tmp_path / "w.mdl"
    )
    with h5py.File(tmp_path / "w.mdl") as file:
        assert set(file) == {"model.fc.weight", "model.fc.weight_mask", "model.n"}
        assert file["model.fc.weight_mask"].dtype == bool
        np.testing.assert_array_equal(file["model.fc.weight"], weight)
        about = dict(file["model.fc.weight"].attrs)
        assert about["__TYPE__"] == "TorchTensorSerializer" and about["__TORCH__"] and about["__NUMPY__"]
        assert about["shapes"].tolist() == [[2, 3]] and list(about["dtypes"]) == ["torch.float32"]
        assert about["rtfx_dtypes"].tolist() == [11] and not about["compressed"]
        assert file.attrs["__version__"] == 0.5 and file.attrs["__SUCCESS__"]
        whole = json.loads(file.attrs["__spec__"])
        one = json.loads(file.attrs["model.fc.weight.__metadata__"])
    state = {"model": {"fc.weight": "*", "n": "*", "fc.weight_mask": "*"}}
    assert whole[0] == state
    # What their reader does with it.
    from torch.utils import _pytree

    leaves = [torch.empty(0)] * 3
    assert _pytree.tree_unflatten(leaves, _pytree.treespec_loads(whole[1])).keys() == state.keys()
    assert whole[1] == _pytree.treespec_dumps(_pytree.tree_flatten(state)[1])
    assert one["__objects__"] == ["model.fc.weight"]
    assert _pytree.tree_unflatten(["x"], _pytree.treespec_loads(one["__spec__"][1])) == {"model.fc.weight": "x"}
    assert one["model.fc.weight.__metadata__"]["shapes"] == [[2, 3]]


def spoil(path: Path, key: str | None, name: str, value: Any) -> None:
    with h5py.File(path, "a") as file:
        (file if key is None else file[key]).attrs[name] = value


@pytest.mark.parametrize(
    ("key", "name", "value", "message"),
    [
        (None, "__version__", 0.4, r"format 0\.5, got 0\.4"),
        (None, "__SUCCESS__", False, "not written to its end"),
        ("model.w", "__TORCH__", False, r"'model\.w': expected a tensor"),
        ("model.w", "dtypes", ["torch.complex64"], r"got torch\.complex64"),
        ("model.w", "dtypes", ["torch.float64"], r"expected torch\.float64, got an array of float32"),
    ],
)
def test_other_files_are_refused(key: str | None, name: str, value: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "w.mdl"
    cerebras.export(Weights({"w": torch.ones(2, 2)}, Masks({}), {}), path)
    spoil(path, key, name, value)
    with pytest.raises(ValueError, match=message):
        cerebras.load(path)


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found none"):
        cerebras.load(tmp_path / "none.mdl")
    (tmp_path / "text.mdl").write_text("text")
    with pytest.raises(ValueError, match="expected an HDF5 checkpoint"):
        cerebras.load(tmp_path / "text.mdl")
    cerebras.export(Weights({}, Masks({}), {}), tmp_path / "empty.mdl")
    with pytest.raises(ValueError, match=r"expected tensors under 'model\.', got none"):
        cerebras.load(tmp_path / "empty.mdl")


@pytest.mark.parametrize(
    ("state", "masks", "message"),
    [
        ({"w": torch.ones(1, 2)}, {"w": torch.tensor([[True, False]])}, "1 nonzero weights of 'w'"),
        ({"a/b": torch.ones(1)}, {}, "cannot be a key"),
        ({"w": torch.ones(1, dtype=torch.complex64)}, {}, "complex64; a checkpoint holds"),
        ({"w": torch.ones(1, 1), "w_mask": torch.ones(1)}, {"w": torch.ones(1, 1).bool()}, "'w_mask' is a tensor"),
    ],
)
def test_what_the_layout_cannot_hold_is_refused_and_nothing_is_written(
    state: dict[str, torch.Tensor], masks: dict[str, torch.Tensor], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        cerebras.export(Weights(state, Masks(masks), {}), tmp_path / "w.mdl")
    assert not list(tmp_path.iterdir())


def test_wrong_uses_are_refused(ticket: Ticket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="another suffix"):
        cerebras.export(ticket, tmp_path / "w.yaml")
    with pytest.raises(TypeError, match="masks with a dense model only"):
        cerebras.export(ticket, tmp_path / "w.mdl", masks=ticket.masks)
    with pytest.raises(TypeError, match=r"got dict"):
        cerebras.export({}, tmp_path / "w.mdl")  # type: ignore[arg-type]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'sparseflow\[cerebras\]'"):
        cerebras.export(ticket, tmp_path / "w.mdl")


def test_the_command_exports(ticket: Ticket, tmp_path: Path, sparseflow: CommandLine) -> None:
    sf.save(ticket, tmp_path / "ticket.safetensors")
    target = tmp_path / "checkpoint.mdl"
    said = sparseflow("export", tmp_path / "ticket.safetensors", target, "--format", "cerebras")
    assert said.status == 0 and "cerebras" in said.out
    assert_same(cerebras.load(target), dict(ticket.rewind), ticket.masks)
    assert "dense, compact or cerebras" in sparseflow("export", target, target, "--format", "h5").error


RIGL: dict[str, Any] = {
    "algorithm": "rigl",
    "sparsity": 0.75,
    "init_method": "random",
    "drop_fraction": {"type": "cosine", "init": 0.3, "half_period": 3584},
    "update": {"freq": 100, "stop": 3584},
    "param_filter": ["*linear_layer.weight"],
}
RIGL_RULE = Rule(
    "rigl", 0.75, ("*linear_layer.weight",), {k: RIGL[k] for k in ("init_method", "drop_fraction", "update")}
)


@pytest.mark.parametrize(
    ("block", "rules"),
    [
        (0.75, [Rule("static", 0.75)]),
        (RIGL, [RIGL_RULE]),
        ({"sparsity": RIGL}, [RIGL_RULE]),
        ({"model": {}, "sparsity": RIGL}, [RIGL_RULE]),
        ({"trainer": {"init": {"model": {}, "sparsity": RIGL}}}, [RIGL_RULE]),
        ([RIGL, {"sparsity": 0.5}], [RIGL_RULE, Rule("static", 0.5)]),
        ({"sparsity": [RIGL, {"sparsity": 0.5}]}, [RIGL_RULE, Rule("static", 0.5)]),
        ({"groups": [RIGL]}, [RIGL_RULE]),
        (
            {"groups": {"algorithm": "rigl", "params": {k: v for k, v in RIGL.items() if k != "algorithm"}}},
            [RIGL_RULE],
        ),
        ({"type": "SET", "schedule": 0.5, "param_filter": "*.fc.weight"}, [Rule("set", 0.5, ("*.fc.weight",))]),
        ({"sparsity": [0.5, 0.75]}, [Rule("static", (0.5, 0.75))]),
        (
            {"algorithm": "gmp", "sparsity": {"type": "exp", "init": 0, "gamma": 0.1}, "update": {"freq": 10}},
            [Rule("gmp", {"type": "exp", "init": 0, "gamma": 0.1}, None, {"update": {"freq": 10}})],
        ),
    ],
)
def test_every_form_of_the_block_is_read(block: Any, rules: list[Rule], tmp_path: Path) -> None:
    assert list(read_sparsity(block)) == rules
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(block))
    assert list(read_sparsity(tmp_path / "config.yaml")) == rules


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"algorithm": "ritl", "sparsity": 0.5}, "no sparsity algorithm 'ritl'; known: static, gmp, set, rigl"),
        ({"sparsity": 0.5, "schedule": 0.5}, "'sparsity' or 'schedule' in a sparsity block, got both"),
        ({"algorithm": "set"}, "expected 'sparsity' in a sparsity block, got nothing"),
        ({"sparsity": 1.5}, r"sparsity in \[0, 1\)"),
        ({"sparsity": 0.5, "param_filter": 3}, "a glob or a list of globs, got 3"),
        ("nowhere.yaml", "expected a config as YAML"),
        ({"model": {}}, "this one trains dense"),
        ([["a"]], "a mapping or a list of mappings, got 'a'"),
    ],
)
def test_wrong_blocks_are_refused(block: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_sparsity(block)


def test_the_first_rule_that_matches_counts() -> None:
    rules = read_sparsity([{"sparsity": 0.9, "param_filter": FILTERS}, {"sparsity": 0.5}])
    shapes = {
        "decoder.0.proj_q_dense_layer.weight": (4, 4),
        "decoder.0.other.weight": (4, 4),
        "decoder.0.norm.weight": (4, 4),
        "embedding.weight": (8, 4),
        "decoder.0.other.bias": (4,),
        "lm_head.weight": (8, 4),
    }
    assert densities(rules, shapes) == pytest.approx(
        {"decoder.0.proj_q_dense_layer.weight": 0.1, "decoder.0.other.weight": 0.5}
    )
    with pytest.raises(ValueError, match="expected a constant sparsity"):
        densities(read_sparsity({"sparsity": [0.5, 0.6]}), {"w": (2, 2)})


def test_names_with_glob_signs_are_matched_as_they_are() -> None:
    rules = read_sparsity(sparsity_block({"a[0].weight": torch.tensor([[True, False]])}))
    assert densities(rules, {"a[0].weight": (1, 2), "a0.weight": (1, 2)}) == {"a[0].weight": 0.5}
