"""Rules about forward and backward: right on every batch and in every form, and the same every time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sparseflow.hardware.backends import SparseOp
from sparseflow.testing.cases import Broken, Case
from sparseflow.testing.closeness import same_bits
from sparseflow.testing.placement import expanded, feature_major, memory_of, sliced

# Of an input: its name, x and dy.
_Form = tuple[str, Tensor, Tensor]


def products(case: Case) -> Broken:
    """Outputs and gradients agree with the reference, for every batch size and every form of x and dy."""
    layer, bias = _layer(case), case.bias()
    for rows in case.batches():
        x = case.input(rows)
        y, expected = layer.op.forward(x, layer.values, bias), case.expected(x, layer.weight, bias)
        yield from case.compare(f"forward, {rows} rows", y, expected)
        # Models call y.view(-1), which needs it.
        if not y.is_contiguous():
            yield "forward gives a contiguous y for a contiguous x", f"strides {y.stride()} of shape {tuple(y.shape)}"
        dy = case.random(*expected.shape)
        announced = rows == case.work.rows
        forms = _forms(x, dy) if announced else [("contiguous x and dy", x, dy)]
        yield from _forwards(case, layer, forms)
        yield from _backwards(case, layer, forms)
        if announced:
            yield from _backwards(case, layer, [("expanded dy", x, expanded(dy))])


def two_forwards(case: Case) -> Broken:
    """An op keeps nothing between a forward and its backward, for batches of equal shape either."""
    op = case.pack()
    runs = [(case.input(case.work.rows), case.weight()) for _ in range(2)]
    outputs = [op.forward(x, op.pack_values(w), None) for x, w in runs]
    for (x, w), y in zip(runs, outputs):
        dy = torch.ones_like(y)
        dx, dvalues = op.backward(dy, x, op.pack_values(w), True)
        dx_expected, dweight = case.expected_backward(dy, x, w)
        yield from case.compare("dvalues after two forwards", op.unpack_values(dvalues), dweight)
        if dx is not None:
            yield from case.compare("dx after two forwards", dx, dx_expected)


def repeated(case: Case) -> Broken:
    """The same call gives the same bits."""
    op, x = case.pack(), case.input(case.work.rows)
    values, bias = op.pack_values(case.weight()), case.bias()
    y, again = op.forward(x, values, bias), op.forward(x, values, bias)
    if not same_bits(y, again):
        yield "forward gives the same bits every time", "two calls differ"
    dy = case.random(*y.shape)
    (dx, dvalues), (dx_again, dvalues_again) = (op.backward(dy, x, values, True) for _ in range(2))
    same_dx = dx is None or dx_again is None or same_bits(dx, dx_again)
    if not same_dx or not same_bits(dvalues, dvalues_again):
        yield "backward gives the same bits every time", "two calls differ"


def untouched(case: Case) -> Broken:
    """Inputs are read only, and so is the memory around them."""
    op, x, bias = case.pack(), case.input(case.work.rows), case.bias()
    values = case.values(op, case.weight())
    inputs = [memory_of(tensor) for tensor in (x, values, bias)]
    before = [memory.clone() for memory in inputs]
    dy = case.random(*op.forward(x, values, bias).shape)
    inputs.append(memory_of(dy))
    before.append(inputs[-1].clone())
    op.backward(dy, x, values, True)
    if not all(torch.equal(now, was) for now, was in zip(inputs, before)):
        yield "forward and backward leave their inputs alone, and the memory around them", "something was written"


def empty_batch(case: Case) -> Broken:
    """No rows are a batch too: an empty output, and a gradient of zeros."""
    op, weight, x = case.pack(), case.weight(), case.input(0)
    values, expected = op.pack_values(weight), case.expected(x, weight, None)
    try:
        y = op.forward(x, values, case.bias())
        dx, dvalues = op.backward(y.new_empty(expected.shape), x, values, True)
    except (LookupError, RuntimeError, ValueError) as error:
        yield "an op takes an empty batch", f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return
    yield from case.compare("forward of an empty batch", y, expected)
    if dx is not None:
        yield from case.compare("dx of an empty batch", dx, x)
    if dvalues.shape != values.shape or bool(dvalues.any()):
        yield "dvalues of an empty batch are zeros", f"got shape {tuple(dvalues.shape)}"


class _Layer(NamedTuple):
    op: SparseOp
    weight: Tensor
    values: Tensor
    # Where values are padding.
    padding: Tensor


def _layer(case: Case) -> _Layer:
    op, weight = case.pack(), case.weight()
    return _Layer(op, weight, case.values(op, weight), op.pack_values(torch.ones_like(weight)) == 0)


def _forms(x: Tensor, dy: Tensor) -> list[_Form]:
    return [
        ("contiguous x and dy", x, dy),
        ("x and dy slices of wider tensors", sliced(x), sliced(dy)),
        ("feature-major x and dy", feature_major(x), feature_major(dy)),
        ("feature-major x", feature_major(x), dy),
        ("feature-major dy", x, feature_major(dy)),
    ]


def _forwards(case: Case, layer: _Layer, forms: list[_Form]) -> Broken:
    expected = case.expected(forms[0][1], layer.weight, None)
    for how, x, _ in forms:
        yield from case.compare(f"forward without bias, {how}", layer.op.forward(x, layer.values, None), expected)


def _backwards(case: Case, layer: _Layer, forms: list[_Form]) -> Broken:
    _, first_x, first_dy = forms[0]
    dx_expected, dweight = case.expected_backward(first_dy, first_x, layer.weight)
    for how, x, dy in forms:
        dx, dvalues = layer.op.backward(dy, x, layer.values, True)
        if dx is None:
            yield "backward gives dx where it is needed", f"None, {how}"
        else:
            yield from case.compare(f"dx, {how}", dx, dx_expected)
        yield from _gradient(case, layer, dvalues, dweight, how)
        nothing, alone = layer.op.backward(dy, x, layer.values, False)
        if nothing is not None:
            yield "backward gives None for dx where it is not needed", how
        yield from _gradient(case, layer, alone, dweight, f"{how}, without dx")


def _gradient(case: Case, layer: _Layer, dvalues: Tensor, dweight: Tensor, how: str) -> Broken:
    if dvalues.shape != layer.values.shape or bool(dvalues[layer.padding].any()):
        yield "dvalues has the shape of values and is zero at padding", how
        return
    yield from case.compare(f"dvalues, {how}", layer.op.unpack_values(dvalues), dweight)
