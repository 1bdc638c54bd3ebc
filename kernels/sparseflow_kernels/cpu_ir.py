"""LLVM IR in a readable form: integers with operators, loops with carried values, vectors of the target's width.

    module = Module(target)
    code = module.function("scale", ["x", "n"])
    x, n = code.arguments
    code.loop(0, n, lambda i: code.store(code.load(x, i) * ...))

Pointers and integers are both 64 bits; offsets count elements. Arithmetic is float32 whatever the storage.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Union

from llvmlite import ir

from sparseflow_kernels.cpu_target import Target

Storage = Literal["f32", "bf16"]
Index = Union["Int", int]
Branch = AbstractContextManager[Any]

_i16, _i32, _i64, _f32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_pointer = ir.PointerType()


class Module:
    """A translation unit for one target."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.ir = ir.Module("sparseflow")
        self.functions: dict[str, ir.Function] = {}

    def function(self, name: str, parameters: Sequence[str], inner: bool = False) -> Code:
        """A new function of 64-bit integers without a result; an inner one is visible in this module alone."""
        function = ir.Function(self.ir, ir.FunctionType(ir.VoidType(), [_i64] * len(parameters)), name)
        if inner:
            function.linkage = "internal"
        for argument, parameter in zip(function.args, parameters):
            argument.name = parameter
        self.functions[name] = function
        return Code(self, function)


class Int:
    """A 64-bit integer, or an address, of the code being written."""

    def __init__(self, code: Code, value: ir.Value) -> None:
        self.code, self.value = code, value

    def __add__(self, other: Index) -> Int:
        return Int(self.code, self.code.builder.add(self.value, self.code.raw(other)))

    def __sub__(self, other: Index) -> Int:
        return Int(self.code, self.code.builder.sub(self.value, self.code.raw(other)))

    def __mul__(self, other: Index) -> Int:
        return Int(self.code, self.code.builder.mul(self.value, self.code.raw(other)))

    def __rsub__(self, other: int) -> Int:
        return self.code.number(other) - self

    __radd__ = __add__
    __rmul__ = __mul__

    def __floordiv__(self, other: Index) -> Int:
        """For numbers that are not negative."""
        return Int(self.code, self.code.builder.udiv(self.value, self.code.raw(other)))

    def __mod__(self, other: Index) -> Int:
        return Int(self.code, self.code.builder.urem(self.value, self.code.raw(other)))

    def __and__(self, other: int) -> Int:
        return Int(self.code, self.code.builder.and_(self.value, self.code.raw(other)))

    def __lt__(self, other: Index) -> ir.Value:
        return self.code.builder.icmp_signed("<", self.value, self.code.raw(other))

    def __ge__(self, other: Index) -> ir.Value:
        return self.code.builder.icmp_signed(">=", self.value, self.code.raw(other))

    def equals(self, other: Index) -> ir.Value:
        return self.code.builder.icmp_signed("==", self.value, self.code.raw(other))

    def min(self, other: Index) -> Int:
        return Int(self.code, self.code.builder.select(self < other, self.value, self.code.raw(other)))


class _Callee:
    """An address with a function's type, which llvmlite wants to see beside it."""

    def __init__(self, pointer: Any, function_type: ir.FunctionType) -> None:
        self.type, self.function_type = pointer.type, function_type
        self.calling_convention = ""
        self.get_reference = pointer.get_reference


class Code:
    """One function while it is written."""

    def __init__(self, module: Module, function: ir.Function) -> None:
        self.module, self.lanes = module, module.target.lanes
        self.entry = function.append_basic_block("entry")
        # llvmlite has no types.
        self.builder: Any = ir.IRBuilder(self.entry)
        self.arguments = [Int(self, argument) for argument in function.args]
        self.vector = ir.VectorType(_f32, self.lanes)
        self._words = ir.VectorType(_i32, self.lanes)
        self._zeros = ir.Constant(self.vector, [0.0] * self.lanes)

    # Integers and memory of single numbers.

    def raw(self, value: Index) -> ir.Value:
        return value.value if isinstance(value, Int) else ir.Constant(_i64, value)

    def number(self, value: Index) -> Int:
        return Int(self, self.raw(value))

    def load_int(self, array: Int, index: Index) -> Int:
        """Element of an int64 array."""
        return Int(self, self.builder.load(self._at(array, index, _i64), align=8, typ=_i64))

    def store_int(self, value: Int, array: Int, index: Index) -> None:
        self.builder.store(value.value, self._at(array, index, _i64), align=8)

    def load_int32(self, array: Int, index: Index) -> Int:
        number = self.builder.load(self._at(array, index, _i32), align=4, typ=_i32)
        return Int(self, self.builder.sext(number, _i64))

    def store_int32(self, value: Int, array: Int, index: Index) -> None:
        self.builder.store(self.builder.trunc(value.value, _i32), self._at(array, index, _i32), align=4)

    def load_byte(self, array: Int, index: Index) -> Int:
        number = self.builder.load(self._at(array, index, ir.IntType(8)), align=1, typ=ir.IntType(8))
        return Int(self, self.builder.zext(number, _i64))

    def store_byte(self, value: Int, array: Int, index: Index) -> None:
        byte = self.builder.trunc(value.value, ir.IntType(8))
        self.builder.store(byte, self._at(array, index, ir.IntType(8)), align=1)

    def load_float(self, array: Int, index: Index) -> ir.Value:
        return self.builder.load(self._at(array, index, _f32), align=4, typ=_f32)

    def store_float(self, value: ir.Value, array: Int, index: Index) -> None:
        self.builder.store(value, self._at(array, index, _f32), align=4)

    def add_float(self, value: ir.Value, array: Int, index: Index, accumulate: ir.Value) -> None:
        """Stores a number, or adds it to what stands there; the memory is read in both cases."""
        before = self.builder.select(accumulate, self.load_float(array, index), ir.Constant(_f32, 0.0))
        self.store_float(self.builder.fadd(value, before), array, index)

    def buffer(self, vectors: int) -> Int:
        """Address of room for that many vectors on the stack, aligned to them."""
        with self.builder.goto_block(self.entry):
            self.builder.position_at_start(self.entry)
            room = self.builder.alloca(ir.ArrayType(self.vector, vectors))
            room.align = 4 * self.lanes
            address = self.builder.ptrtoint(room, _i64)
        return Int(self, address)

    # Flow.

    def loop(
        self,
        start: Index,
        end: Index,
        body: Callable[..., Sequence[ir.Value] | None],
        carried: Sequence[Any] = (),
        step: Index = 1,
    ) -> list[ir.Value]:
        """`for i in range(start, end, step): carried = body(i, *carried)`; returns the last ones."""
        builder = self.builder
        before = builder.block
        head = builder.append_basic_block("head")
        inside = builder.append_basic_block("body")
        after = builder.append_basic_block("after")
        builder.branch(head)
        builder.position_at_end(head)
        counter = builder.phi(_i64)
        counter.add_incoming(self.raw(start), before)
        phis = []
        for value in carried:
            phi = builder.phi(value.type)
            phi.add_incoming(value, before)
            phis.append(phi)
        i = Int(self, counter)
        builder.cbranch(i < end, inside, after)
        builder.position_at_end(inside)
        following = body(i, *phis) or ()
        counter.add_incoming((i + step).value, builder.block)
        for phi, value in zip(phis, following, strict=True):
            phi.add_incoming(value, builder.block)
        builder.branch(head)
        builder.position_at_end(after)
        return phis

    @contextlib.contextmanager
    def when(self, condition: ir.Value) -> Iterator[None]:
        with self.builder.if_then(condition):
            yield

    @contextlib.contextmanager
    def choice(self, condition: ir.Value) -> Iterator[tuple[Branch, Branch]]:
        """`with code.choice(c) as (yes, no)`, then `with yes: ...` and `with no: ...`."""
        with self.builder.if_else(condition) as branches:
            yield branches

    def either(self, condition: ir.Value, yes: Index, no: Index) -> Int:
        return Int(self, self.builder.select(condition, self.raw(yes), self.raw(no)))

    def call(self, name: str, *arguments: Index) -> None:
        """Calls a function of this module."""
        self.builder.call(self.module.functions[name], [self.raw(value) for value in arguments])

    def call_address(self, function: Int, *arguments: Index) -> None:
        """Calls the function at an address: one that takes so many integers and gives nothing back."""
        callee = _Callee(self._pointer(function), ir.FunctionType(ir.VoidType(), [_i64] * len(arguments)))
        self.builder.call(callee, [self.raw(value) for value in arguments])

    def finish(self) -> None:
        self.builder.ret_void()

    # Vectors.

    def zeros(self) -> ir.Value:
        return self._zeros

    def splat(self, number: ir.Value) -> ir.Value:
        """A vector with that number in each lane."""
        return self._spread(number, _f32)

    def shuffle(self, a: ir.Value, b: ir.Value, places: Sequence[int]) -> ir.Value:
        """Lanes picked from a (0 to lanes - 1) and b (from there on)."""
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_i32, len(places)), list(places)))

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """a * b + c, in one instruction where the target has it."""
        return self._intrinsic("llvm.fmuladd", self.vector, [self.vector] * 3, [a, b, c])

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.fadd(a, b)

    def multiply(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.fmul(a, b)

    def relu(self, a: ir.Value) -> ir.Value:
        """max(0, a) as torch has it: NaN stays NaN."""
        negative = self.builder.fcmp_ordered("<", a, self.zeros())
        return self.builder.select(negative, self.zeros(), a)

    def where_positive(self, condition: ir.Value, value: ir.Value, always: ir.Value | None = None) -> ir.Value:
        """Value where `condition` is above 0 or NaN, as torch's ReLU has it; everywhere if the bit `always` is set."""
        positive = self.builder.fcmp_unordered(">", condition, self.zeros())
        if always is not None:
            positive = self.builder.or_(positive, self.repeat(always))
        return self.builder.select(positive, value, self.zeros())

    def repeat(self, bit: ir.Value) -> ir.Value:
        """A mask of all lanes or none."""
        return self._spread(bit, ir.IntType(1))

    def sum(self, a: ir.Value) -> ir.Value:
        """The sum of all lanes, as a number."""
        zero = ir.Constant(_f32, 0.0)
        name = "llvm.vector.reduce.fadd"
        return self._intrinsic(name, _f32, [_f32, self.vector], [zero, a], fastmath=("reassoc",))

    def words(self, array: Int, index: Index, keep: int) -> ir.Value:
        """`lanes` int32 from there, of which the bits of `keep` stay."""
        words = self.builder.load(self._at(array, index, _i32), align=4, typ=self._words)
        return self.builder.and_(words, self._word(keep))

    def splat_word(self, number: Index) -> ir.Value:
        """A vector with that int32 in each lane."""
        return self._spread(self.builder.trunc(self.raw(number), _i32), _i32)

    def any_lane(self, bits: ir.Value) -> ir.Value:
        """Whether any bit of a mask of lanes is set."""
        kind = ir.IntType(self.lanes)
        return self.builder.icmp_unsigned("!=", self.builder.bitcast(bits, kind), ir.Constant(kind, 0))

    def bytes(self, array: Int, index: Index) -> ir.Value:
        """`lanes` bytes from there."""
        kind = ir.VectorType(ir.IntType(8), self.lanes)
        return self.builder.load(self._at(array, index, kind.element), align=1, typ=kind)

    def store_bytes(self, bits: ir.Value, chosen: Any, array: Int, index: Index) -> None:
        """Stores the bytes of `chosen` where a mask of lanes is set, and 0 elsewhere."""
        found = self.builder.and_(self.builder.zext(bits, chosen.type), chosen)
        self.builder.store(found, self._at(array, index, chosen.type.element), align=1)

    def first_lanes(self, count: Index) -> ir.Value:
        """A mask of the lanes below `count`."""
        numbers = ir.Constant(ir.VectorType(_i64, self.lanes), list(range(self.lanes)))
        return self.builder.icmp_signed("<", numbers, self._spread(self.raw(count), _i64))

    def load(self, array: Int, offset: Index, storage: Storage = "f32", mask: ir.Value | None = None) -> ir.Value:
        """`lanes` numbers from there; lanes outside of the mask are 0 and their memory is not touched."""
        halves = ir.VectorType(_i16, self.lanes)
        kind = self.vector if storage == "f32" else halves
        loaded = self._load(self._at(array, offset, kind.element), kind, mask)
        if storage == "f32":
            return loaded
        words = self.builder.shl(self.builder.zext(loaded, self._words), self._word(16))
        return self.builder.bitcast(words, self.vector)

    def store(
        self, value: Any, array: Int, offset: Index, storage: Storage = "f32", mask: ir.Value | None = None
    ) -> None:
        """`lanes` numbers to there; memory outside of the mask is not touched."""
        if storage == "bf16":
            value = self._rounded(value)
        place = self._at(array, offset, value.type.element)
        size = 4 if storage == "f32" else 2
        if mask is None:
            self.builder.store(value, place, align=size)
            return
        kinds = [value.type, _pointer, ir.VectorType(ir.IntType(1), self.lanes)]
        name = f"llvm.masked.store.v{self.lanes}{'f32' if storage == 'f32' else 'i16'}.p0"
        self._call(name, ir.VoidType(), kinds, [value, place, mask], {1: size})

    def _spread(self, one: ir.Value, kind: ir.Type) -> ir.Value:
        """The same in each lane of a vector of that kind of number."""
        empty = ir.Constant(ir.VectorType(kind, self.lanes), ir.Undefined)
        first = self.builder.insert_element(empty, one, ir.Constant(_i32, 0))
        return self.shuffle(first, first, [0] * self.lanes)

    def _load(self, place: ir.Value, kind: ir.VectorType, mask: ir.Value | None) -> ir.Value:
        size = 4 if kind.element == _f32 else 2
        if mask is None:
            return self.builder.load(place, align=size, typ=kind)
        name = f"llvm.masked.load.v{self.lanes}{'f32' if kind.element == _f32 else 'i16'}.p0"
        nothing = ir.Constant(kind, [0.0 if kind.element == _f32 else 0] * self.lanes)
        kinds = [_pointer, ir.VectorType(ir.IntType(1), self.lanes), kind]
        return self._call(name, kind, kinds, [place, mask, nothing], {0: size})

    def _rounded(self, value: ir.Value) -> ir.Value:
        """float32 to bfloat16, nearest with ties to even; NaN stays NaN."""
        builder = self.builder
        word = builder.bitcast(value, self._words)
        odd = builder.and_(builder.lshr(word, self._word(16)), self._word(1))
        rounded = builder.lshr(builder.add(word, builder.add(odd, self._word(0x7FFF))), self._word(16))
        nan = builder.fcmp_unordered("uno", value, value)
        return builder.trunc(builder.select(nan, self._word(0x7FC0), rounded), ir.VectorType(_i16, self.lanes))

    def _word(self, number: int) -> ir.Constant:
        return ir.Constant(self._words, [number] * self.lanes)

    def _at(self, array: Int, index: Index, kind: ir.Type) -> ir.Value:
        return self.builder.gep(self._pointer(array), [self.raw(index)], source_etype=kind)

    def _pointer(self, array: Int) -> ir.Value:
        return self.builder.inttoptr(array.value, _pointer)

    def _intrinsic(
        self, name: str, result: ir.Type, kinds: list[ir.Type], values: list[ir.Value], fastmath: tuple[str, ...] = ()
    ) -> ir.Value:
        return self._call(f"{name}.v{self.lanes}f32", result, kinds, values, {}, fastmath)

    def _call(
        self,
        name: str,
        result: ir.Type,
        kinds: list[ir.Type],
        values: list[ir.Value],
        align: dict[int, int],
        fastmath: tuple[str, ...] = (),
    ) -> ir.Value:
        known = self.module.functions
        if name not in known:
            known[name] = ir.Function(self.module.ir, ir.FunctionType(result, kinds), name)
        call = self.builder.call(known[name], values, fastmath=fastmath, arg_attrs={place: () for place in align})
        for place, size in align.items():
            call.arg_attributes[place].align = size
        return call
