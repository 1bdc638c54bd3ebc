"""Each product of a layer by each family of our kernels, with the tiles that are fastest here, beside dense.

They run as in a step: the packed copy of the values is made anew, in 16 bits from values kept in float32. "compact" is
what the backend does where no kernel of ours wins: a scratch weight, and the library's dense product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparseflow.bench.gpu.dense import dense_side
from sparseflow.bench.gpu.point import Point, Ready, Side, Verdict, measure
from sparseflow.bench.gpu.problem import PRODUCTS, Problem, Product, judge, poisoned, problem
from sparseflow.bench.gpu.setting import Setting, Shape
from sparseflow.hardware.backends import triton_choice
from sparseflow.hardware.backends.triton_choice import DENSE, Layout
from sparseflow.hardware.backends.triton_cost import Call
from sparseflow.hardware.cache import environment
from sparseflow.hardware.workload import Geometry, Workload
from sparseflow.training.proof import TOLERANCE
from sparseflow_kernels.triton_tune import Key, Tuner, config_text

if TYPE_CHECKING:
    from sparseflow.hardware.backends.triton_op import TritonOp

# The usual slices: most configurations take some of their rows at a time.
GATHER = triton_choice.Product("gather", 64)
# Configurations tried besides the default, spread over all of them: compiling all would take the time of the run.
_TRIED = 7
PANELS = tuple(triton_choice.Product("panel", height) for height in triton_choice.PANEL_HEIGHTS)


def kernels(setting: Setting) -> Iterator[Point]:
    """Gather, panels (in 16 bits only), compact, and dense on the same masked weight, for a square layer."""
    return _kernels("kernels", setting, setting.shape)


def kernels_wide(setting: Setting) -> Iterator[Point]:
    """The same for a wide one."""
    return _kernels("kernels-wide", setting, setting.wide)


def our_side(section: str, task: Problem, which: Product, kernel: triton_choice.Product, tuner: Tuner) -> Side:
    """One product by one of our kernels."""
    name = "compact" if kernel == DENSE else kernel.kind
    return Side(task.point(section, name, which), lambda: _prepare(task, which, kernel, tuner))


def call_of(point: Point) -> Call:
    """The product of a point as the cost model sees it."""
    outputs, inputs, tokens = point.shape
    dtype = {name: dtype for dtype, name in triton_choice.DTYPES.items()}[point.dtype]  # type: ignore[index]
    work = Workload((outputs, inputs), rows=tokens, compute_dtype=dtype, density=point.density)
    kernel = triton_choice.Product.parse(point.config)
    return triton_choice.call_of(work, point.product, kernel)  # type: ignore[arg-type]


def _kernels(section: str, setting: Setting, shape: Shape) -> Iterator[Point]:
    for density in setting.densities:
        for dtype in setting.dtypes:
            task = problem(setting, shape, dtype, density)
            ours = (DENSE, GATHER) if dtype == torch.float32 else (DENSE, GATHER, *PANELS)
            for which in PRODUCTS:
                sides = [our_side(section, task, which, kernel, setting.tuner) for kernel in ours]
                yield from measure([dense_side(section, task, which), *sides], task.copies, setting.timed)


def _prepare(task: Problem, which: Product, kernel: triton_choice.Product, tuner: Tuner) -> Ready:
    # Imports triton, which need not be installed for the other sections.
    from sparseflow.hardware.backends.triton_op import pack

    packed = pack(task.mask, _layout(which, kernel))
    values = task.weight[task.mask].float()
    # Feature-major rows of tokens.
    xs, dys = ([one.t() for one in inputs] for inputs in (task.xs, task.dys))

    def run(op: TritonOp, number: int) -> Tensor:
        x, dy = xs[number], dys[number]
        if which == "forward":
            return op.forward_fused(x, values, None, False, True)
        return op.input_gradient(dy, x, values) if which == "dgrad" else op.weight_gradient(dy, x, values)

    def configured(config: str) -> TritonOp:
        return replace(packed, layout=str(_layout(which, replace(kernel, config=config))))

    chosen = replace(kernel, config=_tuned(task, which, kernel, tuner, lambda config: run(configured(config), 0)))
    op = configured(chosen.config)
    return Ready(
        lambda number: run(op, number),
        lambda: _judge(task, which, kernel, op, _poisoned(lambda: run(op, 0))),
        str(chosen),
    )


def _tuned(
    task: Problem, which: Product, kernel: triton_choice.Product, tuner: Tuner, run: Callable[[str], Tensor]
) -> str:
    """The fastest configuration as text; none for what has none, and the default where nothing can be timed."""
    from sparseflow.hardware.backends.triton_parts import configs_of

    device = task.mask.device
    if kernel == DENSE or device.type == "cpu":
        return ""
    default, configs = configs_of(kernel, which, task.dtype, device)
    rows, columns = task.mask.shape if which != "dgrad" else task.mask.t().shape
    # Kernels of one width of numbers behave alike, and every configuration takes a second to compile.
    dtype = torch.bfloat16 if task.dtype == torch.float16 else task.dtype
    key = Key(environment(device), f"{kernel} {which}", rows, columns, task.shape.tokens, dtype, task.density)
    best, _ = tuner.best(key, configs[:: max(1, len(configs) // _TRIED)], default, lambda one: run(config_text(one)))
    return config_text(best)


def _layout(which: Product, kernel: triton_choice.Product) -> Layout:
    return Layout(Geometry(), *(kernel if one == which else DENSE for one in PRODUCTS))


def _judge(task: Problem, which: Product, kernel: triton_choice.Product, op: TritonOp, got: Tensor) -> Verdict:
    if which != "wgrad":
        return judge(got.t(), task.expected(which))
    # The library's product rounds to the dtype of x; ours is float32 from its sums to its result.
    tolerance = TOLERANCE[task.dtype] if kernel == DENSE else None
    return judge(op.unpack_values(got), task.expected(which), tolerance)


def _poisoned(run: Callable[[], Tensor]) -> Tensor:
    with poisoned():
        return run()
