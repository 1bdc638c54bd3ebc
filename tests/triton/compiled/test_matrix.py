"""The default configuration of every kernel compiles as it should. tools/compile_matrix.py --all does the rest."""

from __future__ import annotations

import pytest

from sparseflow_kernels.triton_compile import compile_for, faults
from sparseflow_kernels.triton_compile_cases import cases

CASES = [
    pytest.param(case, id=f"{chip}-{case.kernel}-{case.dtype}".replace(" ", "-"))
    for chip in ("sm_90", "gfx942")
    for case in cases(chip, every=False)
]


@pytest.mark.parametrize("case", CASES)
def test_default_configuration(case):
    first, *others = case.launches()
    compiled = compile_for(first, case.chip)
    assert faults(compiled, case.chip, case.tensor_core, case.itemsize) == []
    for launch in others:
        assert faults(compile_for(launch, case.chip), case.chip) == []


@pytest.mark.parametrize("chip", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_the_matrix_holds_every_kernel_and_dtype(chip):
    held = {(launch.name, case.dtype) for case in cases(chip, every=True) for launch in case.launches()}
    both = [("panel_spmm_kernel", "panel_sddmm_kernel", "panel_fill_kernel"), ("bf16", "fp16")]
    all_three = [("spmm_kernel", "sddmm_kernel", "add_parts_kernel", "refresh_kernel"), ("fp32", "bf16", "fp16")]
    wanted = {(kernel, dtype) for kernels, dtypes in (both, all_three) for kernel in kernels for dtype in dtypes}
    assert wanted <= held
