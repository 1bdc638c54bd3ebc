"""Whether a backend is right: `check_backend` for anybody's, `assert_close` for anybody's tests.

    from sparseflow.testing import check_backend
    check_backend(MyBackend())

Shapes: B rows or images, I in, O out, C channels, H W image, Z values.
"""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparseflow.hardware.backends import Backend, SparseOp
from sparseflow.hardware.workload import Geometry, Workload
from sparseflow.training.proof import TOLERANCE
from sparseflow_kernels import reference

__all__ = ["TOLERANCE", "assert_close", "check_backend", "relative_error"]

# (O, I), rows: odd, tiny, and across the usual tile sizes of 32, 64 and 128.
_LINEAR = [((1, 1), 1), ((7, 33), 1), ((33, 7), 60), ((60, 129), 7), ((129, 60), 33), ((64, 64), 129)]
_IMAGE = (9, 7)
# (O, C / groups, height, width), images, geometry.
_CONV2D = [
    ((7, 3, 3, 3), 2, Geometry("conv2d", padding=(1, 1))),
    ((5, 4, 1, 1), 1, Geometry("conv2d")),
    ((6, 2, 3, 2), 3, Geometry("conv2d", stride=(2, 3), padding=(0, 2))),
    ((33, 3, 3, 3), 2, Geometry("conv2d", padding=(2, 1), dilation=(2, 1))),
    ((6, 2, 3, 3), 2, Geometry("conv2d", stride=(2, 1), padding=(1, 1), groups=3)),
    ((8, 1, 3, 3), 1, Geometry("conv2d", padding=(1, 1), groups=8)),
]
_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def relative_error(got: Tensor, expected: Tensor) -> float:
    """RMS of the difference over RMS of `expected`; 0 where both are zero or empty, NaN where one is not finite."""
    if expected.numel() == 0:
        return 0.0
    wanted = expected.detach().double()
    error = (got.detach().double() - wanted).pow(2).mean().sqrt().item()
    scale = wanted.pow(2).mean().sqrt().item()
    return error / scale if scale else (0.0 if error == 0 else math.inf)


def assert_close(got: Tensor, expected: Tensor, what: str = "the tensor") -> None:
    """`AssertionError` unless shapes agree and `relative_error` stays within `TOLERANCE` of the dtype of `got`."""
    assert got.shape == expected.shape, f"{what}: expected shape {tuple(expected.shape)}, got {tuple(got.shape)}"
    error = relative_error(got, expected)
    assert error <= TOLERANCE[got.dtype], f"{what}: relative error {error:.1e}, allowed {TOLERANCE[got.dtype]:.0e}"


def check_backend(backend: Backend) -> None:
    """Raises AssertionError with every rule of `Backend` and `SparseOp` that this backend breaks; prints nothing.

    Runs small layers of every kind on the CPU, and on the GPU where there is one, each in float32, float64 and
    bfloat16, and compares outputs and gradients with `sparseflow_kernels.reference`. What `unsupported` gives a
    reason for is left out; a backend that supports nothing at all fails. Takes about a second on a CPU.
    """
    broken, ran = dict[str, str](), 0
    for work in _works():
        reason = backend.unsupported(work)
        if reason is not None:
            if not reason.strip():
                broken.setdefault("unsupported gives its reason in words", str(work))
            continue
        ran += 1
        for rule, detail in _broken_rules(backend, work):
            broken.setdefault(rule, f"{detail} ({work.geometry}, {tuple(work.shape)}, {work.dtype}, {work.device})")
    if not ran:
        broken["it supports at least one layer on this machine"] = "unsupported refuses every workload"
    lines = "".join(f"\n  {rule}: {detail}" for rule, detail in broken.items())
    assert not broken, f"backend {backend.name!r} breaks {len(broken)} rules:{lines}"


# A rule that was broken, and how.
_Broken = Iterator[tuple[str, str]]


def _works() -> Iterator[Workload]:
    shapes = [(shape, rows, Geometry(), None) for shape, rows in _LINEAR]
    images = [(shape, rows, geometry, _IMAGE) for shape, rows, geometry in _CONV2D]
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    for device, dtype, layer in itertools.product(devices, _DTYPES, (*shapes, *images)):
        shape, rows, geometry, image = layer
        place, threads = torch.device(device), torch.get_num_threads()
        yield Workload(shape, geometry, rows, image, dtype, dtype, place, threads=threads)


def _broken_rules(backend: Backend, work: Workload) -> _Broken:
    generator = torch.Generator().manual_seed(0)
    checks = (_cost, _layout, _structure, _packing, _moving, _products, _two_forwards)
    # By default a GPU convolves float32 in TF32, whose ten bits are not what the reference is compared to.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for mask in _masks(work, generator):
            density = float(mask.double().mean())
            case = _Case(backend, replace(work, density=density), mask.to(work.device), generator)
            yield from (broken for check in checks for broken in check(case))


def _masks(work: Workload, generator: torch.Generator) -> Iterator[Tensor]:
    scores = torch.rand(work.shape, generator=generator)
    yield torch.ones(work.shape, dtype=torch.bool)
    yield scores == scores.max()
    if work.weights > 1:
        yield scores <= scores.median()
        tenth = scores <= scores.flatten().kthvalue(math.ceil(work.weights / 10)).values
        # Every second row and every third column empty.
        tenth[1::2] = False
        tenth[:, 1::3] = False
        tenth.view(-1)[0] = True
        yield tenth


@dataclass
class _Case:
    """One mask of one layer, and the random tensors for it."""

    backend: Backend
    work: Workload
    mask: Tensor
    generator: torch.Generator

    def pack(self) -> SparseOp:
        return self.backend.pack(self.mask, self.backend.layout(self.work))

    def random(self, *shape: int) -> Tensor:
        # Positive, so that no sum cancels: what remains of the relative error is the kernel's.
        numbers = torch.rand(shape, generator=self.generator) + 0.5
        return numbers.to(self.work.device, self.work.compute_dtype)

    def weight(self) -> Tensor:
        return self.random(*self.work.shape)

    def input(self, rows: int) -> Tensor:
        return self.random(*replace(self.work, rows=rows).input_shape())

    def expected(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        g = self.work.geometry
        if g.kind == "linear":
            return reference.linear(x, weight, self.mask, bias)
        return reference.conv2d(x, weight, self.mask, bias, g.stride, g.padding, g.dilation, g.groups)

    def expected_backward(self, dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        g = self.work.geometry
        if g.kind == "linear":
            return reference.linear_backward(dy, x, weight, self.mask)
        return reference.conv2d_backward(dy, x, weight, self.mask, g.stride, g.padding, g.dilation, g.groups)


def _cost(case: _Case) -> _Broken:
    cost = case.backend.cost(case.work)
    parts = (cost.forward, cost.dgrad, cost.wgrad, cost.update)
    if not all(0 <= part < math.inf for part in parts) or not cost.seconds > 0 or not cost.bytes > 0:
        yield "cost is positive and finite", str(cost)


def _layout(case: _Case) -> _Broken:
    layout = case.backend.layout(case.work)
    if layout != case.backend.layout(case.work):
        yield "layout is a pure function", f"{layout!r}, then {case.backend.layout(case.work)!r}"
    if layout.split("/")[0] != case.backend.name:
        yield "the layout begins with the backend's name", f"{layout!r} of {case.backend.name!r}"
    if str(case.work.geometry) not in layout.split("/"):
        yield "a part of the layout, between slashes, is str(geometry)", repr(layout)
    try:
        case.backend.pack(case.mask, f"not-{layout}")
        yield "pack refuses the layout of another backend with ValueError", f"it took 'not-{layout}'"
    except ValueError:
        pass


def _structure(case: _Case) -> _Broken:
    before, op, again = case.mask.clone(), case.pack(), case.pack()
    if not torch.equal(case.mask, before):
        yield "pack leaves the mask alone", "the mask was modified"
    if op.layout != case.backend.layout(case.work):
        yield "an op keeps its layout", f"packed for {case.backend.layout(case.work)!r}, got {op.layout!r}"
    if op.nnz != int(case.mask.sum()):
        yield "nnz is the number of kept weights", f"{op.nnz} for {int(case.mask.sum())}"
    weight = case.weight()
    first, second = op.tensors(), again.tensors()
    same = first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    if not same or not torch.equal(op.pack_values(weight), again.pack_values(weight)):
        yield "pack is a pure function of mask and layout", "two ops of one mask differ"


def _packing(case: _Case) -> _Broken:
    op, weight = case.pack(), case.weight()
    before, values = weight.clone(), op.pack_values(weight)
    dense = op.unpack_values(values)
    if values.dtype != weight.dtype or dense.dtype != weight.dtype or values.numel() < op.nnz:
        yield "pack_values keeps the dtype and gives at least nnz values", f"{values.dtype}, {values.numel()} values"
    kept = torch.where(case.mask, weight, 0.0)
    if not torch.equal(dense, kept):
        yield "unpack_values(pack_values(weight)) is the masked weight", "it differs"
    if bool(torch.signbit(dense[~case.mask]).any()):
        yield "pruned places unpack to +0.0", "there is a -0.0"
    if not torch.equal(op.pack_values(dense), values):
        yield "pack_values(unpack_values(values)) is values", "it differs"
    if not torch.equal(op.unpack_values(torch.ones_like(values)) != 0, case.mask):
        yield "unpack_values(ones) is the mask", "it differs"
    padding = op.pack_values(torch.ones_like(weight)) == 0
    if int((~padding).sum()) != op.nnz:
        yield "padding is zero after pack_values", f"{int((~padding).sum())} values stand for {op.nnz} kept weights"
    dirty = values.masked_fill(padding, 7.0)
    if not torch.equal(op.unpack_values(dirty), kept):
        yield "unpack_values ignores padding", "numbers at padding reached the weight"
    values.fill_(3.0)
    dense.fill_(3.0)
    if not torch.equal(weight, before) or not torch.equal(op.unpack_values(dirty), kept):
        yield "pack_values and unpack_values give new tensors", "writing to one changed another"


def _moving(case: _Case) -> _Broken:
    op, weight, x = case.pack(), case.weight(), case.input(case.work.rows)
    values = op.pack_values(weight)
    copied = op.with_tensors({key: tensor.clone() for key, tensor in op.tensors().items()})
    for how, twin in (("with_tensors(tensors())", copied), ("pickle", pickle.loads(pickle.dumps(op)))):
        same = (twin.layout, twin.nnz) == (op.layout, op.nnz) and torch.equal(twin.pack_values(weight), values)
        if not same or not torch.equal(twin.forward(x, values, None), op.forward(x, values, None)):
            yield f"{how} gives the same op", "it differs"


def _products(case: _Case) -> _Broken:
    op, weight = case.pack(), case.weight()
    values, bias = op.pack_values(weight), case.random(case.work.shape[0])
    # An op takes any number of rows, whatever its workload expected.
    plain, more = case.input(case.work.rows), case.input(case.work.rows + 2)
    wide = torch.cat([more, more], dim=-1)
    inputs = {
        "contiguous x": plain,
        "more rows": more,
        "strided x": wide[..., : more.shape[-1]],
        "feature-major x": more.movedim(0, -1).contiguous().movedim(-1, 0),
    }
    for how, x in inputs.items():
        y = op.forward(x, values, bias)
        dy = case.random(*y.shape)
        yield from _compare(f"forward, {how}", y, case.expected(x, weight, bias), case)
        yield from _backward(case, op, (dy, x, values, weight), how)
    y = op.forward(plain, values, None)
    yield from _compare("forward without bias", y, case.expected(plain, weight, None), case)
    expanded = y.new_ones(()).expand(y.shape)
    yield from _backward(case, op, (expanded, plain, values, weight), "expanded dy")
    yield from _untouched(op, plain, values, bias)


def _backward(case: _Case, op: SparseOp, tensors: tuple[Tensor, Tensor, Tensor, Tensor], how: str) -> _Broken:
    dy, x, values, weight = tensors
    dx_expected, dweight = case.expected_backward(dy, x, weight)
    dx, dvalues = op.backward(dy, x, values, True)
    if dx is None:
        yield "backward gives dx where it is needed", f"None, {how}"
    else:
        yield from _compare(f"dx, {how}", dx, dx_expected, case)
    yield from _compare(f"dvalues, {how}", op.unpack_values(dvalues), dweight, case)
    padding = op.pack_values(torch.ones_like(weight)) == 0
    if dvalues.shape != values.shape or bool(dvalues[padding].any()):
        yield "dvalues has the shape of values and is zero at padding", how
    nothing, alone = op.backward(dy, x, values, False)
    if nothing is not None:
        yield "backward gives None for dx where it is not needed", how
    yield from _compare(f"dvalues without dx, {how}", op.unpack_values(alone), dweight, case)


def _compare(what: str, got: Tensor, expected: Tensor, case: _Case) -> _Broken:
    dtype = case.work.compute_dtype
    if got.shape != expected.shape or got.dtype != dtype:
        yield f"{what}: shape and dtype", f"expected {expected.shape} of {dtype}, got {got.shape} of {got.dtype}"
    elif not (error := relative_error(got, expected)) <= TOLERANCE[dtype]:
        yield f"{what} agrees with the reference", f"relative error {error:.1e}, allowed {TOLERANCE[dtype]:.0e}"


def _untouched(op: SparseOp, x: Tensor, values: Tensor, bias: Tensor) -> _Broken:
    before = [tensor.clone() for tensor in (x, values, bias)]
    dy = op.forward(x, values, bias)
    kept = dy.clone()
    op.backward(dy, x, values, True)
    if not all(torch.equal(a, b) for a, b in zip((x, values, bias, dy), (*before, kept))):
        yield "forward and backward leave their inputs alone", "one was modified"


def _two_forwards(case: _Case) -> _Broken:
    op, weight, other = case.pack(), case.weight(), case.weight()
    runs = [(case.input(case.work.rows), weight), (case.input(case.work.rows + 1), other)]
    outputs = [op.forward(x, op.pack_values(w), None) for x, w in runs]
    for (x, w), y in zip(runs, outputs):
        dy = torch.ones_like(y)
        dx, dvalues = op.backward(dy, x, op.pack_values(w), True)
        dx_expected, dweight = case.expected_backward(dy, x, w)
        yield from _compare("dvalues after two forwards", op.unpack_values(dvalues), dweight, case)
        if dx is not None:
            yield from _compare("dx after two forwards", dx, dx_expected, case)
