from __future__ import annotations

import pytest
import torch
from networks import BACKENDS, random_masks, twins
from torch import nn

import sparseflow as sf
from sparseflow.hardware.dense_gradient import DenseGradient
from sparseflow.hardware.survey import survey
from sparseflow.testing import assert_close

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_encoder_layer_trains_and_evaluates(backend: str, activation: str, norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, activation, batch_first=True, norm_first=norm_first)
    dense, sparse, masks = twins(layer, backend)
    assert list(masks) == ["linear1.weight", "linear2.weight"]
    x = torch.randn(3, 5, 8)
    assert_close(sparse(x), dense(x))
    dense(x).square().sum().backward()
    sparse(x).square().sum().backward()
    assert_close(sparse.linear1.unpack(sparse.linear1.values.grad), dense.linear1.weight.grad * masks["linear1.weight"])
    dense.eval(), sparse.eval()
    assert_close(sparse(x), dense(x))
    with torch.inference_mode():
        # torch's fast path, which reads linear1.weight itself.
        assert_close(sparse(x), dense(x))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_transformer_encoder_with_padding(backend: str) -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 2)
    dense, sparse, masks = twins(encoder, backend)
    assert len(masks) == 4
    x, padding = torch.randn(2, 4, 8), torch.tensor([[False] * 4, [False, False, True, True]])
    dense.eval(), sparse.eval()
    with torch.no_grad():
        assert_close(sparse(x, src_key_padding_mask=padding), dense(x, src_key_padding_mask=padding))


def test_attention_keeps_its_projections_dense_and_says_why(backend: str) -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2, batch_first=True), "fc": nn.Linear(8, 8)})
    found = survey(model)
    assert list(found.sites) == ["fc.weight"]
    assert "is a subclass of Linear" in found.left_dense["attention.out_proj.weight"]
    sparse = sf.sparsify(model, random_masks(model), backend=backend)
    x = torch.randn(2, 3, 8)
    for mode in (sparse.train(), sparse.eval()):
        y, _ = mode["attention"](x, x, x)
        assert y.shape == x.shape


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config)


def test_gpt2_is_sparse_in_its_conv1d_layers_and_its_tied_head_stays_dense(backend: str) -> None:
    model = gpt2().eval()
    found = survey(model)
    assert {name.rsplit(".", 2)[1] for name in found.sites} == {"c_attn", "c_proj", "c_fc"}
    assert found.left_dense == {"lm_head.weight": "it is tied to 'transformer.wte.weight' of Embedding"}
    dense, sparse, masks = twins(model, backend)
    name = "transformer.h.0.mlp.c_fc.weight"
    # Stored (in, out), as in the dense model's own state dict.
    assert masks[name].shape == (8, 32)
    assert sparse.get_submodule(name.removesuffix(".weight")).weight.shape == (8, 32)
    tokens = torch.tensor([[1, 2, 3, 4]])
    expected, got = dense(tokens, labels=tokens), sparse(tokens, labels=tokens)
    assert_close(got.logits, expected.logits)
    expected.loss.backward()
    got.loss.backward()
    layer, reference = sparse.get_submodule(name[:-7]), dense.get_submodule(name[:-7])
    assert_close(layer.unpack(layer.values.grad), reference.weight.grad * masks[name])
    back = sf.densify(sparse)
    assert type(back.get_submodule(name[:-7])).__name__ == "Conv1D"
    assert_close(back(tokens).logits, expected.logits)
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), dense.state_dict().values()))


def test_conv1d_alone(backend: str) -> None:
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(6, 4)
    dense, sparse, masks = twins(nn.Sequential(layer), backend)
    sparse[0].dense_gradient = DenseGradient(sparse[0])
    x = torch.randn(2, 3, 4)
    dense(x).square().sum().backward()
    sparse(x).square().sum().backward()
    assert_close(sparse[0].dense_gradient.total, dense[0].weight.grad)
    kept = dense[0].weight.detach()[masks["0.weight"]]
    assert torch.equal(sparse.state_dict()["0.weight_values"], kept)
    assert sparse[0].values.is_contiguous()
    optimizer = torch.optim.Adam(sparse.parameters())
    optimizer.step()
    moment = sparse[0].unpack(optimizer.state[sparse[0].values]["exp_avg"])
    values = sparse[0].values
    sf.densify(sparse, optimizer=optimizer)
    assert torch.equal(optimizer.state[sparse[0].weight]["exp_avg"], moment) and moment.shape == (4, 6)
    assert values not in optimizer.state


def test_subclass_of_conv1d_is_listed(backend: str) -> None:
    from transformers.pytorch_utils import Conv1D

    class Mine(Conv1D):
        pass

    model = nn.Sequential(Mine(6, 4), nn.Linear(6, 2))
    plan = sf.plan(model, random_masks(model), backend=backend)
    assert plan.left_dense == {"0.weight": "Mine is a subclass of Conv1D"}
