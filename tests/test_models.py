from math import sqrt
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparseflow.models import GPT, Attention, BasicBlock, build, gpt, lenet_300_100, resnet20

TINY_GPT = {"vocabulary": 11, "context": 8, "layers": 2, "heads": 2, "width": 12}


def weights(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> dict[str, Tensor]:
    return {
        name: model.get_parameter(f"{name}.weight")
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    }


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_lenet_has_the_weights_of_the_paper() -> None:
    found = weights(lenet_300_100(), (nn.Linear,))
    assert {name: tuple(weight.shape) for name, weight in found.items()} == {
        "fc1": (300, 784),
        "fc2": (100, 300),
        "fc3": (10, 100),
    }
    assert sum(weight.numel() for weight in found.values()) == 266_200


def test_lenet_starts_from_a_truncated_glorot_normal_and_zero_biases() -> None:
    torch.manual_seed(0)
    model = lenet_300_100()
    for name, weight in weights(model, (nn.Linear,)).items():
        std = sqrt(2 / sum(weight.shape))
        # Five standard errors of a measured standard deviation.
        assert weight.std().item() == pytest.approx(std, rel=5 / sqrt(2 * weight.numel())), name
        largest = weight.abs().max().item()
        assert 1.9 * std < largest <= 2 * std / 0.87962566 * (1 + 1e-6), name
    assert all(not model.get_parameter(f"fc{i}.bias").any() for i in (1, 2, 3))


def test_lenet_flattens_its_input() -> None:
    model = lenet_300_100()
    images = torch.randn(3, 1, 28, 28)
    assert torch.equal(model(images), model(images.reshape(3, 784)))


def test_resnet20_has_the_parameters_of_the_paper() -> None:
    # 268,336 weights, 1,376 of BatchNorm and 10 biases, for three colours.
    assert parameter_count(resnet20(channels=3)) == 269_722
    assert len(weights(resnet20(), (nn.Conv2d, nn.Linear))) == 20


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3)])
def test_resnet20_reads_both_sizes_of_image(size: int, channels: int) -> None:
    model = resnet20(classes=7, channels=channels, width=4)
    assert model(torch.randn(2, channels, size, size)).shape == (2, 7)


def test_resnet20_starts_kaiming_normal() -> None:
    torch.manual_seed(0)
    for name, weight in weights(resnet20(width=32), (nn.Conv2d, nn.Linear)).items():
        fan_in = weight[0].numel()
        assert weight.std().item() == pytest.approx(sqrt(2 / fan_in), rel=5 / sqrt(2 * weight.numel())), name
    assert not resnet20().get_parameter("fc.bias").any()


def test_shortcut_is_the_strided_identity_padded_with_zero_channels() -> None:
    block = BasicBlock(1, 2, stride=2).eval()
    nn.init.zeros_(block.conv2.weight)
    image = torch.arange(1.0, 17.0).reshape(1, 1, 4, 4)
    assert block(image).tolist() == [[[[1.0, 3.0], [9.0, 11.0]], [[0.0, 0.0], [0.0, 0.0]]]]


def test_gpt_gives_logits_for_every_position() -> None:
    model = build("gpt", TINY_GPT)
    assert model(torch.zeros(3, 5, dtype=torch.int64)).shape == (3, 5, 11)


def test_gpt_cannot_see_the_future_and_does_see_the_past() -> None:
    torch.manual_seed(0)
    model = build("gpt", TINY_GPT)
    tokens = torch.randint(11, (1, 8))
    changed = tokens.clone()
    changed[0, 4] = (tokens[0, 4] + 1) % 11
    differs = (model(tokens) - model(changed)).abs().amax(dim=(0, 2)) > 1e-7
    assert differs.tolist() == [False] * 4 + [True] * 4


def test_attention_against_its_definition() -> None:
    torch.manual_seed(0)
    attention = Attention(heads=2, width=6)
    x_BTI = torch.randn(2, 5, 6)
    heads = []
    for columns in (slice(0, 3), slice(3, 6)):
        q, k, v = (project(x_BTI)[..., columns] for project in (attention.q, attention.k, attention.v))
        scores = (q @ k.transpose(1, 2) / sqrt(3)).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(-1) @ v)
    torch.testing.assert_close(attention(x_BTI), attention.out(torch.cat(heads, -1)))


def test_gpt_scales_what_it_adds_to_the_residual_stream() -> None:
    torch.manual_seed(0)
    model = gpt(64, context=64, layers=2)
    for name, weight in weights(model, (nn.Linear, nn.Embedding)).items():
        std = 0.01 if name.endswith(("attention.out", "mlp.down")) else 0.02
        assert weight.std().item() == pytest.approx(std, rel=5 / sqrt(2 * weight.numel())), name


def test_gpt_ties_its_head_only_when_asked() -> None:
    tied, untied = build("gpt", {**TINY_GPT, "tied": True}), build("gpt", TINY_GPT)
    assert isinstance(tied, GPT)
    assert isinstance(untied, GPT)
    assert tied.head.weight is tied.tokens.weight
    assert untied.head.weight is not untied.tokens.weight
    assert parameter_count(untied) - parameter_count(tied) == 11 * 12


def test_gpt_refuses_more_tokens_than_its_context() -> None:
    with pytest.raises(ValueError, match="at most 8 tokens"):
        build("gpt", TINY_GPT)(torch.zeros(1, 9, dtype=torch.int64))


@pytest.mark.parametrize(
    ("name", "options", "example"),
    [
        ("lenet_300_100", {"inputs": 64}, torch.ones(2, 64)),
        ("resnet20", {"width": 4}, torch.ones(2, 1, 28, 28)),
        ("gpt", TINY_GPT, torch.arange(16).reshape(2, 8) % 11),
    ],
)
def test_every_model_follows_the_seed_and_trains_all_its_parameters(
    name: str, options: dict[str, object], example: Tensor
) -> None:
    torch.manual_seed(3)
    model = build(name, options)
    torch.manual_seed(3)
    again = build(name, options)
    torch.manual_seed(4)
    other = build(name, options)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    model(example).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        (
            "lenet",
            {},
            ValueError,
            r"did you mean 'lenet_300_100'\? available: gpt, kan, lenet_300_100, module:function",
        ),
        ("resnet20", {"widht": 4}, ValueError, "no option of resnet20 'widht'; did you mean 'width'"),
        ("resnet20", {"width": 0}, ValueError, "width must be at least 1, got 0"),
        ("gpt", {}, ValueError, "gpt needs the options vocabulary"),
        ("gpt", {"vocabulary": 5, "heads": 3}, ValueError, "width must be a multiple of heads"),
        ("lenet_300_100", {"inputs": "784"}, TypeError, "expected int, got '784'"),
        ("no_such_module:net", {}, ValueError, "no module 'no_such_module'"),
    ],
)
def test_mistakes_in_a_recipe_are_explained(
    name: str, options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build(name, options)


def test_the_users_own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_nets.py").write_text(
        "from torch import nn\ndef good(width): return nn.Linear(width, 1)\ndef bad(): return 'no model'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert build("own_nets:good", {"width": 5})(torch.ones(2, 5)).shape == (2, 1)
    with pytest.raises(TypeError, match=r"must return a torch\.nn\.Module, got str"):
        build("own_nets:bad", {})
