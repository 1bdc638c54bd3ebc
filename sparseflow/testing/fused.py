"""Rules for a FusedOp: what it does inside its kernels is what torch would do around them, in the strides promised.

Shapes: B rows, O out.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseflow.hardware.backends.base import FusedOp
from sparseflow.testing.cases import Broken, Case
from sparseflow.testing.closeness import same_bits
from sparseflow.testing.placement import bordered, expanded, feature_major, is_feature_major, memory_of

_EITHER = (False, True)


def fused(case: Case) -> Broken:
    """forward_fused and backward_fused, with and without ReLU, bias, and feature-major tensors."""
    op = case.pack()
    if not isinstance(op, FusedOp):
        return
    for relu, biased in itertools.product(_EITHER, _EITHER):
        given = _given(case, op, relu, biased)
        for x_major, y_major in itertools.product(_EITHER, _EITHER):
            yield from _forward(case, op, given, x_major, y_major)
        for x_major, dy_major in itertools.product(_EITHER, _EITHER):
            yield from _backward(case, op, given, x_major, dy_major)
        yield from _gradients(case, op, given, (given.dy, given.x, given.y), False, f"{given.how}, without dx")
        sums = (expanded(given.dy), given.x, given.y)
        yield from _gradients(case, op, given, sums, True, f"{given.how}, expanded dy")
        yield from _untouched(case, op, given)


@dataclass(frozen=True)
class _Given:
    """The inputs of one way to call an op, and what the reference makes of them."""

    relu: bool
    x: Tensor
    values: Tensor
    bias: Tensor | None
    weight: Tensor
    # The output, and with a ReLU what the backward gets as y.
    expected: Tensor
    y: Tensor | None
    dy: Tensor

    @property
    def how(self) -> str:
        return ", ".join([*(["ReLU"] if self.relu else []), "no bias" if self.bias is None else "bias"])


def _given(case: Case, op: FusedOp, relu: bool, biased: bool) -> _Given:
    x, weight, bias = case.input(case.work.rows), case.weight(), case.bias() if biased else None
    if relu:
        # Rows of x and of the weight all of one sign: half of all outputs are negative, and still no sum cancels.
        x = bordered(x * _along(case.signs(x.shape[0]), x))
        weight = bordered(weight * _along(case.signs(weight.shape[0]), weight))
    if bias is not None:
        # Too small to turn a sign. Where nothing is kept the output is 0, and so is the gradient through a ReLU.
        bias = bordered(torch.where(case.mask.flatten(1).any(1), bias / 16, 0.0))
    expected = case.expected(x, weight, bias)
    expected = expected.clamp(min=0) if relu else expected
    y = bordered(expected.to(case.work.compute_dtype)) if relu else None
    return _Given(relu, x, case.values(op, weight), bias, weight, expected, y, case.random(*expected.shape))


def _along(signs: Tensor, tensor: Tensor) -> Tensor:
    return signs.view(-1, *[1] * (tensor.dim() - 1))


def _forward(case: Case, op: FusedOp, given: _Given, x_major: bool, y_major: bool) -> Broken:
    x = feature_major(given.x) if x_major else given.x
    how = f"{given.how}, {_form('x', x_major)}, {_form('y', y_major)}"
    y = op.forward_fused(x, given.values, given.bias, given.relu, y_major)
    yield from case.compare(f"forward_fused, {how}", y, given.expected)
    if y_major and not is_feature_major(y):
        yield "forward_fused gives a feature-major y where asked for one", f"strides {y.stride()}, {how}"
    if not y_major and not y.is_contiguous():
        yield "forward_fused gives a contiguous y unless asked for another", f"strides {y.stride()}, {how}"
    if not same_bits(y, op.forward_fused(x, given.values, given.bias, given.relu, y_major)):
        yield "forward_fused gives the same bits every time", how


def _backward(case: Case, op: FusedOp, given: _Given, x_major: bool, dy_major: bool) -> Broken:
    x = feature_major(given.x) if x_major else given.x
    dy = feature_major(given.dy) if dy_major else given.dy
    # y comes in the strides of its forward, which dy need not share.
    y = feature_major(given.y) if given.y is not None and x_major else given.y
    how = f"{given.how}, {_form('x', x_major)}, {_form('dy', dy_major)}"
    yield from _gradients(case, op, given, (dy, x, y), True, how, x_major)


def _gradients(
    case: Case,
    op: FusedOp,
    given: _Given,
    tensors: tuple[Tensor, Tensor, Tensor | None],
    need_dx: bool,
    how: str,
    x_major: bool = False,
) -> Broken:
    dy, x, y = tensors
    through = dy if y is None else torch.where(y > 0, dy, 0.0)
    dx_expected, dweight = case.expected_backward(through, x, given.weight)
    need_dbias = given.bias is not None
    dx, dvalues, dbias = op.backward_fused(dy, x, y, given.values, need_dx, need_dbias)
    if (dx is not None, dbias is not None) != (need_dx, need_dbias):
        yield "backward_fused gives dx and dbias where needed, else None", how
    yield from case.compare(f"fused dvalues, {how}", op.unpack_values(dvalues), dweight)
    if need_dx and dx is not None:
        yield from case.compare(f"fused dx, {how}", dx, dx_expected)
        if x_major and not is_feature_major(dx):
            yield "backward_fused gives a feature-major dx where x is feature-major", f"strides {dx.stride()}, {how}"
    if need_dbias and dbias is not None:
        yield from case.compare(f"dbias, {how}", dbias, through.double().transpose(0, 1).flatten(1).sum(1))


def _untouched(case: Case, op: FusedOp, given: _Given) -> Broken:
    # What was written to dy by earlier calls may not show when written again.
    dy = case.random(*given.dy.shape)
    tensors = (given.x, given.values, given.bias, given.y, dy)
    inputs = [memory_of(tensor) for tensor in tensors if tensor is not None]
    before = [memory.clone() for memory in inputs]
    op.forward_fused(given.x, given.values, given.bias, given.relu, False)
    op.backward_fused(dy, given.x, given.y, given.values, True, given.bias is not None)
    if not all(torch.equal(now, was) for now, was in zip(inputs, before)):
        yield "fused calls leave their inputs alone, and the memory around them", "something was written"


def _form(what: str, major: bool) -> str:
    return f"feature-major {what}" if major else f"contiguous {what}"
