"""The formats of operands: rounding against exact integers, and training with them."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from masked_reference import random_masks
from streamed_networks import NETWORKS
from torch import Tensor, nn

import sparseflow as sf
from sparseflow.hardware.streaming.formats import RoundedProducts, format_of, round_cb16
from sparseflow.hardware.streaming.scaling import LossScale
from sparseflow.testing import assert_close
from sparseflow.testing.closeness import same_bits

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9, foreach=False)
LENET, GPT = NETWORKS["lenet"], NETWORKS["gpt"]

# Sign, exponent and fraction bits.
BITS = {"fp16": (5, 10), "bf16": (8, 7), "cb16": (6, 9)}


def rounded_exactly(x: float, exponent_bits: int, fraction_bits: int) -> float:
    """IEEE 754's round to nearest, ties to even, in whole numbers of the last place."""
    if math.isnan(x) or math.isinf(x) or x == 0:
        return x
    bias = 2 ** (exponent_bits - 1) - 1
    exponent = max(math.frexp(x)[1] - 1, 1 - bias)
    place = Fraction(2) ** (exponent - fraction_bits)
    # Python rounds halves to even, and fractions exactly.
    found = round(Fraction(x) / place) * place
    if abs(found) >= Fraction(2) ** (bias + 1):
        return math.copysign(math.inf, x)
    return math.copysign(float(found), x)


@pytest.mark.parametrize("name", BITS)
@given(bits=st.integers(0, 2**32 - 1))
@example(bits=0x00000001)
@example(bits=0x80000000)
@example(bits=0x2B000000)
@example(bits=0x4F7FE000)
@example(bits=0x4F7FF000)
@example(bits=0x7F7FFFFF)
@example(bits=0xFF800000)
@example(bits=0x7FC00000)
def test_rounding_is_that_of_exact_integers(name: str, bits: int) -> None:
    x = torch.tensor([bits], dtype=torch.uint32).view(torch.float32)
    expected = torch.tensor([rounded_exactly(x.item(), *BITS[name])])
    got = format_of(name).round(x)
    assert same_bits(got, expected) or (got.isnan() and expected.isnan()), (x.item(), got.item(), expected.item())


@given(st.floats(2.0**-45, 2.0**33, width=32))
def test_cb16_rounds_every_size_that_it_has_and_a_little_more(size: float) -> None:
    for x in (size, -size):
        assert round_cb16(torch.tensor([x])).item() == rounded_exactly(x, *BITS["cb16"])


def test_cb16_in_literal_numbers() -> None:
    largest = (2 - 2**-9) * 2.0**31
    pairs = {
        1 + 2**-10: 1.0,
        1 + 3 * 2**-10: 1 + 2**-8,
        largest: largest,
        2.0**32 - 2**21 - 2**10: largest,
        2.0**32 - 2**21: math.inf,
        2.0**-39: 2.0**-39,
        2.0**-40: 0.0,
        3 * 2.0**-40: 2.0**-38,
    }
    got = round_cb16(torch.tensor(list(pairs)))
    assert got.tolist() == list(pairs.values())


@pytest.mark.parametrize("name", BITS)
def test_rounding_twice_is_rounding_once(name: str) -> None:
    once = format_of(name).round(torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 1e3)
    assert same_bits(format_of(name).round(once), once)


@pytest.mark.parametrize(
    "product",
    [
        lambda x, w, b: F.linear(x, w, b),
        lambda x, w, b: F.linear(weight=w, input=x, bias=b),
        lambda x, w, b: torch.addmm(b, x, w.t()),
        lambda x, w, b: F.conv1d(x[..., None], w[..., None], b).squeeze(-1),
        lambda x, w, b: F.conv2d(x[..., None, None], w[..., None, None], b).flatten(1),
    ],
    ids=["linear", "keywords", "Conv1D", "conv1d", "conv2d"],
)
def test_products_take_rounded_inputs_and_gradients(product: object) -> None:
    assert callable(product)
    format = format_of("cb16")
    draw = torch.Generator().manual_seed(0)
    x, w, dy = (torch.randn(shape, generator=draw) for shape in ((4, 6), (3, 6), (4, 3)))
    x.requires_grad_(), w.requires_grad_()
    with RoundedProducts(format):
        y = product(x, w, torch.zeros(3))
    rounded, dy_rounded = format.round(x.detach()), format.round(dy)
    assert_close(y, rounded @ w.t())
    y.backward(dy)
    assert x.grad is not None and w.grad is not None
    assert_close(x.grad, dy_rounded @ w.detach())
    assert_close(w.grad, dy_rounded.t() @ rounded)
    assert not torch.equal(rounded, x)


# Of one step's weight change against that of float32: about the last place of the format.
@pytest.mark.parametrize(("name", "allowed"), [("fp16", 2e-3), ("cb16", 4e-3), ("bf16", 2e-2)])
def test_a_step_is_that_of_float32_to_tolerance(name: str, allowed: float) -> None:
    changes, losses = [], []
    for format in ("fp32", name):
        torch.manual_seed(3)
        model: nn.Module = GPT.make()
        before = {key: p.detach().clone() for key, p in model.named_parameters()}
        masks = random_masks(model, 0.5)
        model, optimizer = sf.stream(model, SGD(model.parameters()), None, masks, format=format, spill=True)
        loss = GPT.loss(model, 0)
        optimizer.scale(loss).backward()
        optimizer.step()
        stream = sf.stream_of(model)
        assert stream is not None
        losses.append(loss.item())
        masked = {key: p * masks.get(key, torch.tensor(True)) for key, p in before.items()}
        changes.append(torch.cat([(stream.read(key) - masked[key]).flatten() for key in stream.names]))
    assert losses[0] != losses[1]
    error = (changes[1] - changes[0]).square().mean().sqrt() / changes[0].square().mean().sqrt()
    assert 0 < error < allowed


def test_sixteen_bits_halve_what_is_sent() -> None:
    bytes_sent = {}
    for format in ("fp32", "bf16"):
        model: nn.Module = LENET.make()
        model, optimizer = sf.stream(model, SGD(model.parameters()), None, None, format=format, strict=True)
        LENET.loss(model, 0).backward()
        optimizer.step()
        stream = sf.stream_of(model)
        assert stream is not None
        bytes_sent[format] = sum(message.nbytes for message in stream.sent if message.direction == "out")
    assert bytes_sent["fp32"] == 2 * bytes_sent["bf16"]


def test_a_step_that_overflows_leaves_everything_and_halves_the_scale() -> None:
    model: nn.Module = LENET.make()
    masks = random_masks(model, 0.3)
    model, optimizer = sf.stream(model, SGD(model.parameters()), None, masks, format="fp16", spill=True)
    stream = sf.stream_of(model)
    assert stream is not None

    def everything() -> list[Tensor]:
        names, store = stream.names, stream.store
        return [t.clone() for name in names for t in (store.values(name), store.state(name, "momentum"))]

    optimizer.scale(LENET.loss(model, 0)).backward()
    optimizer.step()
    before, scale = everything(), optimizer.scale_of_loss
    assert scale is not None and scale.value == 2.0**15
    optimizer.scale(LENET.loss(model, 1) * 1e6).backward()
    optimizer.step()
    assert all(map(same_bits, everything(), before))
    assert (stream.store.step, stream.store.steps("fc1.weight")) == (1, 1)
    assert scale.value == 2.0**14
    optimizer.scale(LENET.loss(model, 2)).backward()
    optimizer.step()
    assert stream.store.step == 2 and not same_bits(everything()[0], before[0])


def test_a_loss_that_was_not_scaled_is_noticed() -> None:
    model: nn.Module = LENET.make()
    model, optimizer = sf.stream(model, SGD(model.parameters()), None, format="cb16", spill=True)
    LENET.loss(model, 0).backward()
    with pytest.raises(ValueError, match=r"call optimizer.scale\(loss\).backward\(\)"):
        optimizer.step()


def test_scale_grows_after_two_thousand_good_steps_and_has_bounds() -> None:
    scale = LossScale(2.0**15)
    scale.update(finite=False)
    for _ in range(1999):
        scale.update(finite=True)
    assert scale.value == 2.0**14
    scale.update(finite=True)
    assert scale.value == 2.0**15
    for _ in range(2000):
        scale.update(finite=True)
    assert scale.value == 2.0**15
    for _ in range(40):
        scale.update(finite=False)
    assert scale.value == 2.0**-14
    again = LossScale(2.0**15)
    again.load_state_dict(scale.state_dict())
    assert again == scale
