"""Compiles modules into functions of this process, and runs them on torch's own OpenMP threads.

A kernel is a function (arguments, thread, threads): the address of an int64 array, and which share of the work to
do. `Kernel` starts it once on each thread. One pool serves torch and us: two would fight over the cores.
"""

from __future__ import annotations

import ctypes
import functools
import warnings
from collections.abc import Callable
from pathlib import Path

from llvmlite import binding, ir

from sparseflow_kernels.cpu_ir import Code, Int, Module
from sparseflow_kernels.cpu_target import Target


class Kernel:
    """A compiled kernel. `kernel(threads, *arguments)`: addresses and integers, as many as it was written for."""

    def __init__(self, module: Module, name: str, arguments: int) -> None:
        entry = _write_entry(module, name)
        # The code lives as long as its engine does.
        self._engine = _compile(module)
        address = self._engine.get_function_address(entry)
        self._enter = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(address)
        self._block = ctypes.c_int64 * arguments

    def __call__(self, threads: int, *arguments: int) -> None:
        self._enter(self._block(*arguments), threads)

    def prepare(self, *arguments: int) -> Prepared:
        """A call of which most arguments are known."""
        return Prepared(self, self._enter, self._block(*arguments))


class Prepared:
    """A kernel with arguments of which a few are still to be set, by their numbers, in each call.

    Filling in six of thirty takes a microsecond, handing over thirty takes five.
    """

    __slots__ = ("_copy", "_enter", "_kernel", "_template")

    def __init__(self, kernel: Kernel, enter: Callable[..., None], template: ctypes.Array[ctypes.c_int64]) -> None:
        self._kernel = kernel
        # The template is shared by all Python threads, so each call works on a copy.
        self._enter, self._template, self._copy = enter, template, type(template).from_buffer_copy

    def block(self) -> ctypes.Array[ctypes.c_int64]:
        """The arguments of one call, to be completed."""
        return self._copy(self._template)

    def run(self, block: ctypes.Array[ctypes.c_int64], threads: int) -> None:
        self._enter(block, threads)


def kernel(
    target: Target,
    arguments: int,
    write: Callable[[Code, list[Int], Int, Int], None],
    declare: Callable[[Module], None] | None = None,
) -> Kernel:
    """Compiles what `write(code, arguments, thread, threads)` writes, beside the functions that `declare` does."""
    module = Module(target)
    if declare is not None:
        declare(module)
    code = module.function("work", ["arguments", "thread", "threads"])
    block, thread, threads = code.arguments
    write(code, [code.load_int(block, i) for i in range(arguments)], thread, threads)
    code.finish()
    return Kernel(module, "work", arguments)


def function(module: Module, name: str) -> int:
    """Compiles a module; the address of one of its functions, good for the rest of the process."""
    engine = _compile(module)
    _ENGINES.append(engine)
    return int(engine.get_function_address(name))


def barrier(code: Code, threads: Int) -> None:
    """All threads of the kernel wait here for each other."""
    if gomp() is None:
        return
    with code.when(threads >= 2):
        _call(code, "GOMP_barrier", ir.VoidType(), [], [])


@functools.cache
def gomp() -> ctypes.CDLL | None:
    """The OpenMP library that torch has loaded, if it is GNU's; None, with a warning: kernels run on one thread."""
    import torch

    maps = Path("/proc/self/maps")
    loaded = _libraries(maps.read_text()) if maps.exists() else set()
    # Other packages bring their own, with pools of their own.
    root = Path(torch.__file__).resolve().parent
    own = {path for path in loaded if {root, root.with_name("torch.libs")} & set(path.parents)}
    found = own or loaded
    if len(found) == 1:
        return ctypes.CDLL(str(min(found)))
    if torch.get_num_threads() > 1:
        warnings.warn(
            f"sparse CPU kernels run on one thread: expected one GNU OpenMP library of torch's, found {len(found)}",
            stacklevel=2,
        )
    return None


def _libraries(maps: str) -> set[Path]:
    """The files named libgomp in the memory map of a process; names may hold spaces."""
    fields = (line.split(maxsplit=5) for line in maps.splitlines())
    paths = {Path(field[5].removesuffix(" (deleted)")) for field in fields if len(field) == 6}
    return {path for path in paths if path.name.startswith("libgomp")}


def _write_entry(module: Module, name: str) -> str:
    """enter(arguments, threads): the kernel on a team of that many, or right here for one."""
    if gomp() is not None:
        task = module.function("task", ["arguments"], inner=True)
        number = ir.IntType(32)
        thread = _call(task, "omp_get_thread_num", number, [], [])
        threads = _call(task, "omp_get_num_threads", number, [], [])
        wide = [Int(task, task.builder.sext(value, ir.IntType(64))) for value in (thread, threads)]
        task.call(name, task.arguments[0], *wide)
        task.finish()
    code = module.function("enter", ["arguments", "threads"])
    arguments, threads = code.arguments
    if gomp() is None:
        code.call(name, arguments, 0, 1)
        code.finish()
        return "enter"
    with code.choice(threads < 2) as (alone, together):
        with alone:
            code.call(name, arguments, 0, 1)
        with together:
            team = code.builder.trunc(threads.value, ir.IntType(32))
            pointer = ir.PointerType()
            data = code.builder.inttoptr(arguments.value, pointer)
            kinds = [pointer, pointer, ir.IntType(32), ir.IntType(32)]
            zero = ir.Constant(ir.IntType(32), 0)
            _call(code, "GOMP_parallel", ir.VoidType(), kinds, [module.functions["task"], data, team, zero])
    code.finish()
    return "enter"


def _call(code: Code, name: str, result: ir.Type, kinds: list[ir.Type], values: list[ir.Value]) -> ir.Value:
    """Calls a function of the OpenMP library."""
    known = code.module.functions
    if name not in known:
        binding.add_symbol(name, ctypes.cast(getattr(gomp(), name), ctypes.c_void_p).value)
        known[name] = ir.Function(code.module.ir, ir.FunctionType(result, kinds), name)
    return code.builder.call(known[name], values)


def _compile(module: Module) -> binding.ExecutionEngine:
    _initialize()
    parsed = binding.parse_assembly(str(module.ir))
    parsed.verify()
    # Loops are written as wide as they are meant to be, and nothing is to be inlined: few passes are enough, and a
    # third of the time of the usual ones.
    passes = binding.create_new_function_pass_manager()
    for add in (passes.add_simplify_cfg_pass, passes.add_instruction_combine_pass, passes.add_simplify_cfg_pass):
        add()
    builder = binding.create_pass_builder(_machine(module.target), binding.create_pipeline_tuning_options())
    for one in parsed.functions:
        if not one.is_declaration:
            passes.run(one, builder)
    # MCJIT takes the machine with it.
    engine = binding.create_mcjit_compiler(parsed, _machine(module.target))
    engine.finalize_object()
    return engine


# Of functions whose addresses are handed about.
_ENGINES: list[binding.ExecutionEngine] = []


def _machine(target: Target) -> binding.TargetMachine:
    triple = binding.Target.from_default_triple()
    return triple.create_target_machine(cpu=target.cpu, features=target.features, opt=2)


@functools.cache
def _initialize() -> None:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
