"""Rules about a backend's answers, and about ops as structures: packing, moving, copying."""

from __future__ import annotations

import math
import pickle

import torch

from sparseflow.testing.cases import Broken, Case


def cost(case: Case) -> Broken:
    """Cost is a cost."""
    given = case.backend.cost(case.work)
    parts = (given.forward, given.dgrad, given.wgrad, given.update)
    if not all(0 <= part < math.inf for part in parts) or not given.seconds > 0 or not given.bytes > 0:
        yield "cost is positive and finite", str(given)


def layout(case: Case) -> Broken:
    """The layout names a native order of this backend, and of no other."""
    given, again = case.backend.layout(case.work), case.backend.layout(case.work)
    if given != again:
        yield "layout is a pure function", f"{given!r}, then {again!r}"
    if given.split("/")[0] != case.backend.name:
        yield "the layout begins with the backend's name", f"{given!r} of {case.backend.name!r}"
    if str(case.work.geometry) not in given.split("/"):
        yield "a part of the layout, between slashes, is str(geometry)", repr(given)
    try:
        case.backend.pack(case.mask, f"not-{given}")
        yield "pack refuses the layout of another backend with ValueError", f"it took 'not-{given}'"
    except ValueError:
        pass


def structure(case: Case) -> Broken:
    """An op is its mask's, and packing it again gives the same."""
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


def packing(case: Case) -> Broken:
    """pack_values and unpack_values are inverses of each other, padding apart."""
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


def moving(case: Case) -> Broken:
    """An op survives being moved and being pickled."""
    op, weight, x = case.pack(), case.weight(), case.input(case.work.rows)
    values = op.pack_values(weight)
    copied = op.with_tensors({key: tensor.clone() for key, tensor in op.tensors().items()})
    for how, twin in (("with_tensors(tensors())", copied), ("pickle", pickle.loads(pickle.dumps(op)))):
        same = (twin.layout, twin.nnz) == (op.layout, op.nnz) and torch.equal(twin.pack_values(weight), values)
        if not same or not torch.equal(twin.forward(x, values, None), op.forward(x, values, None)):
            yield f"{how} gives the same op", "it differs"
