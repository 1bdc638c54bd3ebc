"""The candidates of each product of a layer timed on the GPU at hand, on a random mask of its density."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from sparseflow.hardware.backends.triton_choice import (
    DENSE,
    WHICH,
    Layout,
    Product,
    Times,
    Which,
    call_of,
    candidates,
)
from sparseflow.hardware.backends.triton_cost import ChipModel
from sparseflow.hardware.backends.triton_op import TritonOp, in_order, pack, through
from sparseflow.hardware.backends.triton_parts import configs_of
from sparseflow.hardware.backends.triton_tokens import to_feature_major
from sparseflow.hardware.cache import cache_folder, environment, read_cache, write_cache
from sparseflow.hardware.workload import Workload
from sparseflow_kernels.triton_tune import Key, Tuner, config_text

_FORMAT = "sparseflow tuning 1"
_FILE = "triton-tuning.json"
# A candidate that is modelled so many times slower than the best one is not tried.
_HOPELESS = 5.0


def measured(work: Workload, chip: ChipModel, tuner: Tuner | None = None) -> Times:
    """Seconds of the candidates of each product; the best kernel of each stands there with its best configuration.

    What was timed before on such a machine is found in the `cache_folder`. Compiles kernels, which takes up to a
    minute for a first layer. One warning for each product of which nothing could be timed: it is left to dense.
    """
    path = cache_folder()
    known = {} if path is None else read_cache(path / _FILE, _FORMAT)
    before = len(known)
    trial = Trial(work, chip, tuner or Tuner(known))
    # Events are recorded on the current GPU, which need not be that of the workload.
    with torch.cuda.device(work.device) if work.device.type == "cuda" else nullcontext():
        times: Times = {which: trial.times(which) for which in WHICH}
    if path is not None and tuner is None and len(known) > before:
        write_cache(path / _FILE, _FORMAT, known)
    return times


class Trial:
    """The tensors of one workload, made when the first of its kernels has to be timed."""

    def __init__(self, work: Workload, chip: ChipModel, tuner: Tuner) -> None:
        self._work = work
        self._chip = chip
        self._tuner = tuner
        self._tensors: _Tensors | None = None
        self._op: tuple[Which, Product, TritonOp] | None = None

    def times(self, which: Which) -> Mapping[Product, float]:
        """Seconds of the candidates of one product, those that could be timed."""
        some = self._worth_trying(which)
        if some == [DENSE]:
            return {DENSE: self._chip.seconds(call_of(self._work, which, DENSE))}
        tried = {one: self._tuner.seconds(self._key(which, one), partial(self._run, which, one)) for one in some}
        found = {one: seconds for one, seconds in tried.items() if seconds < math.inf}
        if not found:
            warnings.warn(f"no kernel of {which} could be timed for {self._work}; using {DENSE}", stacklevel=2)
            return {DENSE: self._chip.seconds(call_of(self._work, which, DENSE))}
        sparse = [one for one in found if one != DENSE]
        if sparse:
            best = min(sparse, key=found.__getitem__)
            tuned, seconds = self._tuned(which, best, found.pop(best))
            found[tuned] = seconds
        return found

    def _worth_trying(self, which: Which) -> list[Product]:
        modelled = {one: self._chip.seconds(call_of(self._work, which, one)) for one in candidates(self._work, which)}
        limit = _HOPELESS * min(modelled.values())
        return [one for one, seconds in modelled.items() if one == DENSE or seconds <= limit]

    def _tuned(self, which: Which, product: Product, seconds: float) -> tuple[Product, float]:
        default, configs = configs_of(product, which, self._work.compute_dtype, self._work.device)
        call = call_of(self._work, which, product)
        kernel = f"{environment(self._work.device)} | {product} {which} {self._work.geometry}"
        key = Key(
            self._chip.name, kernel, call.rows, call.columns, call.tokens, self._work.compute_dtype, self._work.density
        )
        best, found = self._tuner.best(
            key, configs, default, lambda config: self._run(which, replace(product, config=config_text(config)))
        )
        if best == default or found == math.inf:
            return product, seconds
        return replace(product, config=config_text(best)), min(found, seconds)

    def _key(self, which: Which, product: Product) -> str:
        precision = torch.get_float32_matmul_precision()
        work = replace(self._work, needs_dx=True)
        return f"{environment(work.device)} | {precision} | {which} {product} | {work}"

    def _run(self, which: Which, product: Product) -> Tensor:
        tensors, op = self._made(), self._packed(which, product)
        if which == "forward":
            return op.forward_fused(tensors.x, tensors.values, None, False, self._work.chained_out)
        dy = through(tensors.dy, None, product != DENSE)
        if which == "wgrad":
            return op.weight_gradient(dy, tensors.x, tensors.values)
        return in_order(op.input_gradient(dy, tensors.x, tensors.values), self._work.chained_in)

    def _packed(self, which: Which, product: Product) -> TritonOp:
        # Packing is not part of a step; configurations share a structure.
        plain = replace(product, config="")
        if self._op is None or self._op[:2] != (which, plain):
            self._op = (which, plain, pack(self._made().mask, self._layout(which, plain)))
        return replace(self._op[2], layout=str(self._layout(which, product)))

    def _layout(self, which: Which, product: Product) -> Layout:
        return Layout(self._work.geometry, *(product if one == which else DENSE for one in WHICH))

    def _made(self) -> _Tensors:
        if self._tensors is None:
            self._tensors = _tensors(self._work)
        return self._tensors


@dataclass(frozen=True)
class _Tensors:
    x: Tensor
    dy: Tensor
    values: Tensor
    mask: Tensor


def _tensors(work: Workload) -> _Tensors:
    """Random ones of the workload's sizes, drawn on its device; the global RNG is not used."""
    generator = torch.Generator(work.device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=work.device, generator=generator)

    shape = work.input_shape()
    image = () if work.geometry.kind == "linear" else work.output_image((shape[2], shape[3]))
    mask = torch.rand(work.shape, device=work.device, generator=generator) < work.density
    mask.view(-1)[0] = True
    x, dy = (random(*size).to(work.compute_dtype) for size in (shape, (work.rows, work.shape[0], *image)))
    x, dy = (to_feature_major(x) if work.chained_in else x), (to_feature_major(dy) if work.chained_out else dy)
    # Under autocast the op gets the parameter itself.
    return _Tensors(x, dy, random(int(mask.sum())).to(work.dtype), mask)
