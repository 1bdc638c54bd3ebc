"""What torch itself offers for sparse weights: CSR, BSR, and 2:4 on sparse tensor cores."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.sparse import to_sparse_semi_structured

from sparseflow.bench.gpu.dense import dense_side
from sparseflow.bench.gpu.point import Absent, Point, Ready, Side, first_line, measure
from sparseflow.bench.gpu.problem import Problem, judge, poisoned, problem
from sparseflow.bench.gpu.products import GATHER, our_side
from sparseflow.bench.gpu.setting import Setting

# Wide enough for the tensor cores; every block of a random mask holds something.
_BLOCK = 64
# The share of the slots of 2:4 that hold a weight: full, and as few as in masks of 90 and 98 % made fit by permutation.
_FILLED = (1.0, 0.2, 0.04)


def torch_sparse(setting: Setting) -> Iterator[Point]:
    """The forward product on torch's CSR and BSR, beside the dense one and ours."""
    section = "torch-sparse"
    for dtype in (torch.float32, torch.bfloat16):
        for density in setting.densities:
            task = problem(setting, setting.shape, dtype, density)
            sides = [
                dense_side(section, task, "forward"),
                _library_side(section, "torch CSR", task, lambda weight: weight.to_sparse_csr()),
                _library_side(section, "torch BSR", task, lambda weight: weight.to_sparse_bsr((_BLOCK, _BLOCK))),
                our_side(section, task, "forward", GATHER, setting.tuner),
            ]
            yield from measure(sides, task.copies, setting.timed)


def semi_structured(setting: Setting) -> Iterator[Point]:
    """2:4 through cuSPARSELt, with its slots filled in part, beside the dense product on the same weight."""
    for shape in (setting.shape, setting.wide, setting.widest):
        for filled in _FILLED:
            task = _two_of_four(setting, problem(setting, shape, torch.bfloat16, 1.0), filled)
            sides = [dense_side("2:4", task, "forward"), _library_side("2:4", "2:4", task, to_sparse_semi_structured)]
            points = measure(sides, task.copies, setting.timed)
            yield from points
            if any(point.absent for point in points):
                # It would say the same at every other place.
                return


def cusparselt_version() -> str:
    """The version of cuSPARSELt that torch has, or why there is none."""
    if torch.version.cuda is None:
        return "none: torch is built without CUDA"
    if not torch.backends.cusparselt.is_available():
        return "none: torch is built without it"
    return str(torch.backends.cusparselt.version())


def _library_side(section: str, name: str, task: Problem, convert: Callable[[Tensor], Tensor]) -> Side:
    def prepare() -> Ready:
        # torch calls these formats a prototype or a beta, once a process.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            try:
                weight = convert(task.weight)
                with poisoned():
                    got = weight @ task.xs[0]
            # A format without a kernel for this dtype or device: a finding about torch, not about us.
            except RuntimeError as error:
                raise Absent(first_line(error)) from error
        return Ready(lambda number: weight @ task.xs[number], lambda: judge(got, task.expected("forward")))

    return Side(task.point(section, name, "forward"), prepare)


def _two_of_four(setting: Setting, task: Problem, filled: float) -> Problem:
    """The task with at most two weights in any four neighbours of a row, `filled` of those slots in use."""
    groups = (task.shape.outputs, task.shape.inputs // 4, 4)
    slots = setting.uniform(*groups).argsort(-1) < 2
    mask = (slots & (setting.uniform(*groups) < filled)).view(task.mask.shape)
    return replace(task, density=filled / 2, mask=mask, weight=torch.where(mask, task.weight, 0.0))
