"""Compiles Triton kernels for GPUs that are not there, and says what came out: registers, spills, shared memory, loads.

A launcher is run on tensors of the CPU while every launch in it is recorded instead of made; what is compiled is then
exactly what a launch compiles, with the types and the hints of divisibility that it gives the compiler.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

_TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}
_DIVISIBLE = 16


@dataclass(frozen=True)
class Chip:
    """A target of the compiler, and the shared memory (LDS) in bytes that a block may have on it."""

    name: str
    target: GPUTarget
    shared: int


CHIPS = {
    chip.name: chip
    for chip in (
        # CUDA C++ Programming Guide, table of compute capabilities: per block, opted in.
        Chip("sm_80", GPUTarget("cuda", 80, 32), 163 << 10),
        Chip("sm_90", GPUTarget("cuda", 90, 32), 227 << 10),
        Chip("sm_100", GPUTarget("cuda", 100, 32), 227 << 10),
        # AMD Instinct MI300 ISA: LDS of a workgroup.
        Chip("gfx942", GPUTarget("hip", "gfx942", 64), 64 << 10),
    )
}


@dataclass(frozen=True, eq=False)
class Launch:
    """One launch as the compiler sees it."""

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, object]
    # Of arguments, by name: known to be multiples of 16.
    divisible: frozenset[str]
    # num_warps, num_stages, …
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)

    @property
    def key(self) -> str:
        """Two launches that compile to the same have the same."""
        return repr((self.name, self.signature, self.constants, sorted(self.divisible), self.options))


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a kernel: registers of a thread; bytes of stack (spills included) and shared memory."""

    registers: int
    stack: int
    shared: int
    # How many loads from global memory there are, by their bytes for one thread.
    loads: dict[int, int] = field(default_factory=dict)
    # The instruction, e.g. "wgmma".
    tensor_core: str | None = None


def recorded(launcher: Callable[[], object]) -> list[Launch]:
    """The launches that `launcher` makes, each recorded in place of being made. Not under Triton's interpreter."""
    launches: list[Launch] = []

    def record(kernel: Any, *arguments: Any, grid: object, warmup: bool, **keywords: Any) -> None:
        launches.append(_launch(kernel, arguments, keywords))

    with mock.patch.object(JITFunction, "run", record):
        launcher()
    return launches


def compile_for(launch: Launch, chip: Chip) -> Compiled:
    """Compiles one launch for a chip. About a second; Triton's own cache answers a repetition."""
    names = list(launch.signature)
    attributes = {(names.index(name),): [["tt.divisibility", _DIVISIBLE]] for name in launch.divisible}
    source = ASTSource(launch.kernel, launch.signature, launch.constants, attributes)
    built = triton.compile(source, target=chip.target, options=launch.options)
    shared = int(built.metadata.shared)
    return _nvidia(built.asm, shared) if chip.target.backend == "cuda" else _amd(built.asm, shared)


def faults(compiled: Compiled, chip: Chip, tensor_core: bool = False, itemsize: int = 0) -> list[str]:
    """What is wrong with it, in words.

    `tensor_core`: it must use them. `itemsize`: it must read rows of numbers of so many bytes, 16 bytes at a time.
    """
    found = []
    if compiled.stack:
        found.append(f"{compiled.stack} bytes of stack: registers spill")
    if compiled.shared > chip.shared:
        found.append(f"{compiled.shared} bytes of shared memory; {chip.name} has {chip.shared}")
    whole, single = compiled.loads.get(16, 0), compiled.loads.get(itemsize, 0)
    # Single numbers are read besides, about one for a row: indices, values, biases.
    if itemsize and single >= 2 * whole:
        found.append(f"{whole} loads of 16 bytes, and {single} of {itemsize}: rows are not read 16 bytes at a time")
    if tensor_core and compiled.tensor_core is None:
        found.append("no instruction of tensor cores")
    return found


def _launch(kernel: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Launch:
    names = {parameter.name for parameter in kernel.params}
    bound = kernel.signature.bind(*arguments, **{name: keywords[name] for name in keywords if name in names})
    bound.apply_defaults()
    signature, constants, divisible = {}, {}, set()
    for parameter in kernel.params:
        name, value = parameter.name, bound.arguments[parameter.name]
        signature[name] = "constexpr" if parameter.is_constexpr else _type(value)
        if signature[name] == "constexpr":
            constants[name] = value
        elif _divisible(value):
            divisible.add(name)
    options = {name: keywords[name] for name in keywords if name not in names}
    return Launch(kernel, signature, constants, frozenset(divisible), options)


def _type(value: object) -> str:
    """As the launch types it: what is None or 1 is compiled in."""
    if isinstance(value, Tensor):
        return _TYPES[value.dtype]
    if isinstance(value, bool):
        return "u1"
    if isinstance(value, int):
        return "constexpr" if value == 1 else "i32" if -(2**31) <= value < 2**31 else "i64"
    if isinstance(value, float):
        return "fp32"
    if value is None:
        return "constexpr"
    raise TypeError(f"expected a tensor or a number as an argument of a kernel, got {type(value).__name__}")


def _divisible(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.data_ptr() % _DIVISIBLE == 0
    return isinstance(value, int) and not isinstance(value, bool) and value % _DIVISIBLE == 0


def _nvidia(asm: dict[str, Any], shared: int) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = (int(_found(rf"\b{what}:(\d+)", usage)) for what in ("REG", "STACK"))
    ptx = asm["ptx"]
    return Compiled(registers, stack, shared, _nvidia_loads(ptx), _first(("tcgen05.mma", "wgmma", "mma.sync"), ptx))


def _nvidia_loads(ptx: str) -> dict[int, int]:
    loads = Counter(int(size, 0) for size in re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*?\], *(\w+)", ptx))
    for count, bits in re.findall(r"\bld\.global[.:\w]*?(?:\.v(\d))?\.[bufs](\d+)\b", ptx):
        loads[int(count or 1) * int(bits) // 8] += 1
    return dict(loads)


_AMD_BYTES = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "ushort": 2, "sshort": 2, "short": 2, "ubyte": 1}


def _amd(asm: dict[str, Any], shared: int) -> Compiled:
    text = asm["amdgcn"]
    fields = ("vgpr_count", "vgpr_spill_count", "private_segment_fixed_size")
    registers, spilled, private = (int(_found(rf"\.{name}:\s*(\d+)", text)) for name in fields)
    kinds = re.findall(r"\b(?:global|buffer|flat)_load_(dwordx[234]|dword|[us]short|short|ubyte)\b", text)
    kinds += re.findall(r"\b(?:global|buffer|flat)_load_(short)_d16", text)
    loads = dict(Counter(_AMD_BYTES[kind] for kind in kinds))
    return Compiled(registers, max(4 * spilled, private), shared, loads, _first(("v_mfma",), text))


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match is not None, pattern
    return match[1]


def _first(names: tuple[str, ...], text: str) -> str | None:
    return next((name for name in names if name in text), None)
