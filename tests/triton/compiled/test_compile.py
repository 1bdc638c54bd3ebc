"""The compile matrix sees what it is there to see, and compiles what a launch would."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from greedy_kernels import product_kernel, sums_kernel

from sparseflow_kernels.triton_compile import CHIPS, Compiled, compile_for, faults, recorded

CHIP_NAMES = ["sm_90", "gfx942"]


def sums(rows, pitch, warps):
    x = torch.empty(64, dtype=torch.float32)
    return recorded(lambda: sums_kernel[(1,)](x, x, pitch, ROWS=rows, COLUMNS=64, STEPS=4, num_warps=warps))[0]


def product(stages):
    x = torch.empty(64, dtype=torch.float16)
    return recorded(lambda: product_kernel[(1,)](x, x, 4096, 64, SIZE=128, num_warps=8, num_stages=stages))[0]


@pytest.mark.parametrize("chip", CHIP_NAMES)
def test_a_modest_kernel_has_no_faults(chip):
    compiled = compile_for(sums(16, 4096, 4), CHIPS[chip])
    assert faults(compiled, CHIPS[chip], itemsize=4) == []
    assert 0 < compiled.registers <= 256


# One warp, of 32 and 64 threads: more numbers for each than it has registers.
@pytest.mark.parametrize(("chip", "rows"), [("sm_90", 128), ("gfx942", 512)])
def test_spills_are_found(chip, rows):
    compiled = compile_for(sums(rows, 4096, 1), CHIPS[chip])
    assert compiled.stack > 0
    assert any("registers spill" in fault for fault in faults(compiled, CHIPS[chip]))


@pytest.mark.parametrize("chip", CHIP_NAMES)
def test_narrow_loads_are_found(chip):
    # Rows at odd addresses: what a launch sees is what the compiler is told.
    compiled = compile_for(sums(16, 4095, 4), CHIPS[chip])
    assert compiled.loads.get(16, 0) == 0
    assert any("rows are not read 16 bytes at a time" in fault for fault in faults(compiled, CHIPS[chip], itemsize=4))


@pytest.mark.parametrize(("chip", "instruction"), [("sm_80", "mma.sync"), ("sm_90", "wgmma"), ("gfx942", "v_mfma")])
def test_tensor_cores_are_found(chip, instruction):
    assert compile_for(product(2), CHIPS[chip]).tensor_core == instruction
    compiled = compile_for(sums(16, 4096, 4), CHIPS[chip])
    assert faults(compiled, CHIPS[chip], tensor_core=True) == ["no instruction of tensor cores"]


def test_too_much_shared_memory_is_found():
    assert faults(compile_for(product(3), CHIPS["sm_90"]), CHIPS["sm_90"], True, 2) == []
    compiled = compile_for(product(5), CHIPS["sm_90"])
    assert [fault for fault in faults(compiled, CHIPS["sm_90"]) if "shared memory" in fault] == [
        f"{compiled.shared} bytes of shared memory; sm_90 has {227 << 10}"
    ]


def test_each_fault_stands_alone():
    chip = CHIPS["sm_80"]
    good = Compiled(128, 0, 163 << 10, {16: 8, 2: 15}, "mma.sync")
    assert faults(good, chip, True, 2) == []
    for change in ({"stack": 8}, {"shared": (163 << 10) + 1}, {"loads": {16: 8, 2: 16}}, {"tensor_core": None}):
        assert len(faults(replace(good, **change), chip, True, 2)) == 1


def test_a_launch_is_recorded_as_the_compiler_gets_it():
    x = torch.empty(64, dtype=torch.bfloat16)
    y = torch.empty(65)[1:]
    (launch,) = recorded(lambda: product_kernel[(1,)](x, y, 2**31, 1, SIZE=16, num_warps=2))
    assert launch.name == "product_kernel"
    assert launch.signature == {"x": "*bf16", "y": "*fp32", "pitch": "i64", "steps": "constexpr", "SIZE": "constexpr"}
    assert launch.constants == {"steps": 1, "SIZE": 16}
    # y begins 4 bytes behind a multiple of 16.
    assert launch.divisible == {"x", "pitch"}
    assert launch.options == {"num_warps": 2}
