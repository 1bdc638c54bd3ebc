"""The sparse layers of others: SparseProp's modules, and torch.sparse CSR with its own autograd.

Nikdan et al., 2023 (arXiv:2302.04852). SparseProp comes with the extra `bench` and is used nowhere else.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from typing import cast

import torch
from torch import Tensor, nn

from sparseflow.bench.networks import Case
from sparseflow.bench.step import Step, masked_model
from sparseflow.testing import relative_error
from sparseflow.training.proof import GRADIENT_TOLERANCE, TOLERANCE

MISSING = "not installed: pip install 'sparseflow[bench]'"


class CsrLinear(nn.Module):
    """y = x Wᵀ + b with W as a CSR parameter. torch makes its gradient dense, so that no optimizer can update it."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            self.weight = nn.Parameter(dense.weight.detach().to_sparse_csr())
        self.bias = dense.bias

    def forward(self, x_BI: Tensor) -> Tensor:
        # Faster than F.linear, which transposes the CSR weight in each call.
        y_BO: Tensor = (self.weight @ x_BI.t()).t() + self.bias
        return y_BO


def sparseprop_installed() -> bool:
    """Whether SparseProp can be imported."""
    return importlib.util.find_spec("sparseprop") is not None


def sparseprop_steps(case: Case, density: float) -> dict[str, Step]:
    """SparseProp's step on the weights and masks of ours: for images in both of its modes."""
    if case.x.dim() != 4:
        return {"sparseprop": _sparseprop_step(case, density, by_image=False)}
    return {
        "sparseprop over batch": _sparseprop_step(case, density, by_image=False),
        "sparseprop over image": _sparseprop_step(case, density, by_image=True),
    }


def csr_step(case: Case, density: float) -> Step:
    """torch.sparse's step on the weights and masks of ours, without the update of its weights."""
    model, _ = masked_model(case, density)
    layers = []
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            layers.append(CsrLinear(module))
            model.set_submodule(name, layers[-1])
    return Step(model, case.x, case.target, untrained=[layer.weight for layer in layers])


def disagreement(step: Step, case: Case, density: float) -> str:
    """ "ok" where a peer's output and gradient of the input are the dense network's; else what differs."""
    reference, _ = masked_model(case, density)
    got, expected = _output_and_dx(step, step.model), _output_and_dx(step, reference)
    tolerances = (TOLERANCE[torch.float32], GRADIENT_TOLERANCE[torch.float32])
    parts = zip(("its output", "its gradient of the input"), got, expected, tolerances, strict=True)
    for what, ours, theirs, tolerance in parts:
        error = relative_error(ours, theirs)
        if not error <= tolerance:
            return f"{what} differs from the dense network: relative RMS error {error:.1e}"
    return "ok"


def _sparseprop_step(case: Case, density: float, by_image: bool) -> Step:
    modules = importlib.import_module("sparseprop.modules")
    model, _ = masked_model(case, density)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            model.set_submodule(name, cast(nn.Module, modules.SparseLinear.from_dense(module)))
        elif isinstance(module, nn.Conv2d):
            theirs = modules.SparseConv2d.from_dense(module, vectorizing_over_on=by_image)
            model.set_submodule(name, cast(nn.Module, theirs))
    return Step(model, case.x, case.target)


def _output_and_dx(step: Step, model: nn.Module) -> tuple[Tensor, Tensor]:
    x = step.x.detach().requires_grad_()
    y = model(x)
    step.backward(y)
    model.zero_grad()
    assert x.grad is not None
    return y.detach(), x.grad
