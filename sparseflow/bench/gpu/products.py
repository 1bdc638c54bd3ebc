"""Our kernels on one masked weight: each product of each family, with the tiles that are fastest here, beside dense."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sparseflow.bench.gpu.dense import dense_side
from sparseflow.bench.gpu.point import Point, Ready, Side, Verdict, measure
from sparseflow.bench.gpu.problem import PRODUCTS, Problem, Product, judge, poisoned, problem
from sparseflow.bench.gpu.setting import Setting, Shape
from sparseflow_kernels.triton_coo import forward_coo, linear_dgrad_coo
from sparseflow_kernels.triton_lines import linear_lines
from sparseflow_kernels.triton_slices import Slices, slices
from sparseflow_kernels.triton_tune import Key, Tuner, config_text

# Rows that a slice binds together.
HEIGHT = 16


def kernels(setting: Setting) -> Iterator[Point]:
    """The gather and panel kernels, and dense on the same masked weight, for a square layer."""
    return _kernels("kernels", setting, setting.shape)


def kernels_wide(setting: Setting) -> Iterator[Point]:
    """The same for a wide one."""
    return _kernels("kernels-wide", setting, setting.wide)


def structures(mask: Tensor) -> tuple[Slices, Slices]:
    """The slices of a mask (O, I), and those of its transpose."""
    forward, dgrad = forward_coo(mask), linear_dgrad_coo(mask)
    return slices(*forward, HEIGHT), slices(*dgrad, HEIGHT)


def gather_side(section: str, task: Problem, product: Product, tuner: Tuner) -> Side:
    """One product by the gather kernels."""
    prepare = _weight_gradient if product == "wgrad" else _multiply
    return Side(task.point(section, "gather", product), lambda: prepare(task, product, tuner))


def _kernels(section: str, setting: Setting, shape: Shape) -> Iterator[Point]:
    for density in setting.densities:
        for dtype in setting.dtypes:
            task = problem(setting, shape, dtype, density)
            for product in PRODUCTS:
                sides = [dense_side(section, task, product), gather_side(section, task, product, setting.tuner)]
                yield from measure(sides, task.copies, setting.timed)


def _multiply(task: Problem, product: Product, tuner: Tuner) -> Ready:
    # Imports triton, which a run without a GPU need not have.
    from sparseflow_kernels.triton_pack import refresh
    from sparseflow_kernels.triton_spmm import CONFIGS, SpmmConfig, default_config, spmm

    structure = structures(task.mask)[product == "dgrad"]
    (packed,) = refresh(task.weight[task.mask], [structure.source], task.dtype)
    inputs = task.dys if product == "dgrad" else task.xs
    lines = [linear_lines(x) for x in inputs]

    def run(number: int, config: SpmmConfig) -> Tensor:
        return spmm(structure, packed, inputs[number], lines[number], task.dtype, config=config)

    default = default_config(task.dtype, task.mask.device)
    config, _ = tuner.best(
        _key("spmm", task, structure), CONFIGS[task.dtype.itemsize], default, lambda one: run(0, one)
    )
    return Ready(
        lambda number: run(number, config),
        lambda: _judge(task, product, lambda: run(0, config)),
        config_text(config),
    )


def _weight_gradient(task: Problem, product: Product, tuner: Tuner) -> Ready:
    from sparseflow_kernels.triton_sddmm import CONFIGS, SddmmConfig, default_config, sddmm

    structure = structures(task.mask)[0]
    nnz = int(task.mask.sum())
    lines = [linear_lines(x) for x in task.xs]

    def run(number: int, config: SddmmConfig) -> Tensor:
        return sddmm(structure, task.dys[number], task.xs[number], lines[number], nnz, config=config)

    def scattered() -> Tensor:
        return torch.zeros(task.mask.shape, device=task.mask.device).masked_scatter_(task.mask, run(0, config))

    default = default_config(task.dtype, task.mask.device)
    config, _ = tuner.best(
        _key("sddmm", task, structure), CONFIGS[task.dtype.itemsize], default, lambda one: run(0, one)
    )
    return Ready(
        lambda number: run(number, config),
        lambda: _judge(task, product, scattered),
        config_text(config),
        config.steps,
    )


def _judge(task: Problem, product: Product, run: Callable[[], Tensor]) -> Verdict:
    with poisoned():
        got = run()
    return judge(got, task.expected(product))


def _key(kernel: str, task: Problem, structure: Slices) -> Key:
    device = task.mask.device
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"
    return Key(chip, kernel, structure.rows, structure.columns, task.shape.tokens, task.dtype, task.density)
