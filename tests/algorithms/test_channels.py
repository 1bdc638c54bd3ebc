"""Whole channels: found by dye, pruned with what reads them, and taken out with equal outputs."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparseflow as sf
from sparseflow.training.wiring import trace


class Convs(nn.Module):
    """Two convolutions with BatchNorm, pooling, flatten and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 5, 3, bias=False)
        self.norm2 = nn.BatchNorm2d(5)
        self.fc1 = nn.Linear(5 * 9, 7)
        self.fc2 = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x))), 2)
        x = F.relu(self.norm2(self.conv2(x)))
        out: Tensor = self.fc2(F.gelu(self.fc1(x.flatten(1))))
        return out


def trained(model: nn.Module) -> nn.Module:
    """With biases, affines and statistics that a pruned channel would show."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + (0.5 if "var" in name else -0.2))
    return model


def convs() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return trained(Convs()), torch.randn(4, 1, 10, 10)


def masked_output(model: nn.Module, masks: sf.Masks, x: Tensor) -> Tensor:
    state = {n: t * masks[n] if n in masks else t for n, t in model.state_dict().items()}
    out: Tensor = torch.func.functional_call(model.eval(), state, (x,))
    return out


def test_every_input_knows_its_channel() -> None:
    model, x = convs()
    wiring = trace(model, x)
    assert wiring.feeds["conv1.weight"]["conv2.weight"].tolist() == [0, 1, 2, 3, 4, 5]
    assert wiring.norms["conv1.weight"]["norm1"].tolist() == [0, 1, 2, 3, 4, 5]
    # A flattened image holds nine numbers of each channel.
    assert wiring.feeds["conv2.weight"]["fc1.weight"].tolist() == [c for c in range(5) for _ in range(9)]
    assert wiring.refused == {"fc2.weight": "it reaches the model's output"}


def test_a_channel_goes_with_its_row_and_with_what_reads_it() -> None:
    model, x = convs()
    masks = sf.prune(model, 10 / 18, pattern=sf.channels(model, x), floor=1)
    gone = {name: ~mask.flatten(1).any(1) for name, mask in masks.items()}
    assert sum(int(gone[name].sum()) for name in ("conv1.weight", "conv2.weight", "fc1.weight")) == 8
    read = masks["conv2.weight"][~gone["conv2.weight"]].transpose(0, 1).flatten(1).any(1)
    assert torch.equal(~read, gone["conv1.weight"])
    assert torch.equal(~masks["fc1.weight"].any(0), gone["conv2.weight"].repeat_interleave(9))
    assert not bool(gone["fc2.weight"].any())


def test_the_channels_of_the_smallest_mean_go() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, -3.0], [1.0, 1.0], [2.0, 2.0]]))  # type: ignore[operator,union-attr]
    masks = sf.prune(model, 2 / 3, pattern=sf.channels(model, torch.zeros(1, 2)))
    assert masks["0.weight"].any(1).tolist() == [True, False, True]
    assert masks["2.weight"].tolist() == [[True, False, True]] * 2


@pytest.mark.parametrize("density", [0.3, 0.6, 0.9])
def test_the_smaller_model_gives_equal_outputs(density: float) -> None:
    model, x = convs()
    model.double()
    x = x.double()
    masks = sf.prune(model, density, pattern=sf.channels(model, x), floor=1, criterion="random")
    small = sf.shrink(model, masks, x)
    expected = masked_output(model, masks, x)
    torch.testing.assert_close(small.eval()(x), expected, rtol=1e-10, atol=1e-12)
    rows = {name: int(mask.flatten(1).any(1).sum()) for name, mask in masks.items()}
    assert small.conv1.weight.shape == (small.conv1.out_channels, 1, 3, 3)
    assert small.conv1.out_channels == small.norm1.num_features == rows["conv1.weight"]
    assert small.norm1.running_var.shape == (rows["conv1.weight"],)
    assert small.fc1.in_features == 9 * rows["conv2.weight"]
    # Another input, another batch size, and training.
    small.train()(torch.randn(2, 1, 10, 10, dtype=torch.float64)).sum().backward()


def without_columns(masks: sf.Masks) -> dict[str, Tensor]:
    """The trap: rows alone. What a pruned channel's bias and BatchNorm put out is still read."""
    rows = {name: mask.flatten(1).any(1) for name, mask in masks.items()}
    return {n: rows[n].view(-1, *[1] * (mask.dim() - 1)).expand_as(mask).clone() for n, mask in masks.items()}


def test_rows_alone_do_not_make_a_channel_go() -> None:
    model, x = convs()
    masks = sf.prune(model, 0.6, pattern=sf.channels(model, x), floor=1)
    rows = sf.Masks(without_columns(masks))
    small = sf.shrink(model, rows, x)
    assert small.conv1.out_channels == 6
    torch.testing.assert_close(small.eval()(x), masked_output(model, rows, x))
    assert not torch.allclose(masked_output(model, rows, x), masked_output(model, masks, x), atol=1e-3)


def test_an_unstructured_ticket_loses_the_units_that_nothing_reads() -> None:
    torch.manual_seed(0)
    model = sf.models.lenet_300_100(inputs=16, classes=4)
    x = torch.randn(3, 16)
    masks = sf.prune(model, 0.02, floor=1)
    small = sf.shrink(sf.sparsify(model, masks, backend="dense-compact"), masks, x)
    # Units of the second layer that the third does not read go, and then those of the first that only they read.
    second = masks["fc3.weight"].any(0)
    assert 0 < small.fc2.out_features == int(second.sum()) < 100
    assert small.fc1.out_features == int((masks["fc2.weight"] & second[:, None]).any(0).sum())


def test_residual_channels_are_refused_and_those_inside_of_blocks_go() -> None:
    torch.manual_seed(0)
    model, x = trained(sf.models.resnet20(width=4)), torch.randn(2, 1, 8, 8)
    pattern = sf.channels(model, x)
    assert set(pattern.feeds) == {f"layer{i}.{j}.conv1.weight" for i in (1, 2, 3) for j in (0, 1, 2)}
    assert "residual connection" in pattern.refused["layer1.0.conv2.weight"]
    assert "residual connection" in pattern.refused["conv1.weight"]
    masks = sf.prune(model, 0.5, pattern=pattern, floor=1)
    small = sf.shrink(model, masks, x)
    torch.testing.assert_close(small.eval()(x), masked_output(model, masks, x), rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < 0.6 * sum(p.numel() for p in model.parameters())


def test_what_mixes_channels_is_refused() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.norm = nn.Linear(4, 6), nn.Linear(6, 2), nn.LayerNorm(6)
            self.grouped = nn.Conv2d(2, 4, 1, groups=2)
            self.last = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.down(self.norm(self.up(x)))
            out: Tensor = self.last(self.grouped(x[..., None, None]).flatten(1))
            return out

    refused = trace(Mixing(), torch.zeros(1, 4)).refused
    assert refused["up.weight"] == "it is read by norm, which has weights by channel of its own"
    assert refused["down.weight"] == "it is read by grouped.weight, a grouped convolution"
    assert refused["grouped.weight"] == "it is a grouped convolution"


def test_attention_mixes_channels_and_an_mlp_does_not() -> None:
    torch.manual_seed(0)
    model = sf.models.gpt(11, context=8, layers=1, heads=2, width=4)
    tokens = torch.randint(0, 11, (2, 8))
    pattern = sf.channels(model, tokens)
    assert set(pattern.feeds) == {"blocks.0.mlp.up.weight"}
    masks = sf.prune(model, 0.5, pattern=pattern, param_filter="blocks.0.mlp.*")
    small = sf.shrink(model, masks, tokens)
    torch.testing.assert_close(small(tokens), masked_output(model, masks, tokens), rtol=1e-4, atol=1e-5)
    assert small.get_submodule("blocks.0.mlp.up").out_features == 8


def test_code_that_counts_on_a_width_is_refused() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(self.a(x).view(-1, 6))
            return out

    model, x = Fixed(), torch.randn(2, 4)
    masks = sf.prune(model, 0.5, pattern=sf.channels(model, x))
    with pytest.raises(ValueError, match="counts on the width of a layer"):
        sf.shrink(model, masks, x)


def test_a_model_without_inner_channels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no layer has channels that may go: .*it reaches the model's output"):
        sf.channels(nn.Linear(3, 2), torch.zeros(1, 3))
