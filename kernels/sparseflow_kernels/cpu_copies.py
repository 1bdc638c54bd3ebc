"""The copies between activations in memory and the tiles of the CPU kernels, compiled once a process.

A tile is feature-major: tile[feature * width + row]. Activations are row-major or feature-major, as their strides say.
"""

from __future__ import annotations

import functools

from llvmlite import ir

from sparseflow_kernels.cpu_ir import Code, Index, Int, Module, Storage
from sparseflow_kernels.cpu_jit import function
from sparseflow_kernels.cpu_shuffle import interleave
from sparseflow_kernels.cpu_target import Target

_MATRIX = ["address", "row_stride", "feature_stride"]
PACK = [*_MATRIX, *("y_" + name for name in _MATRIX), "sums", "later", "row", "rows", "first", "last", "tile", "width"]
UNPACK = ["tile", "width", *_MATRIX, "row", "rows", "first", "last"]


class Matrix:
    """A (rows, features) tensor of activations in memory."""

    def __init__(self, code: Code, address: Int, row: Int, feature: Int, storage: Storage = "f32") -> None:
        self.code, self.address, self.row, self.feature = code, address, row, feature
        self.storage: Storage = storage

    def place(self, row: Index, feature: Index) -> Int:
        return self.row * row + self.feature * feature

    def load(self, row: Index, feature: Index, mask: ir.Value) -> ir.Value:
        return self.code.load(self.address, self.place(row, feature), self.storage, mask)


@functools.cache
def pack_function(target: Target, storage: Storage) -> int:
    """Address of pack(*`PACK`): copies features [first, last) of `rows` rows into a tile, with zeros behind them.

    With a `y` numbers are cleared where that matrix is not above 0. With `sums`, an array, each feature's sum is
    written there, or added where `later` is not 0.
    """
    module = Module(target)
    code = module.function("pack", PACK)
    address, row_stride, feature_stride, y_address, y_row_stride, y_feature_stride, *rest = code.arguments
    x = Matrix(code, address, row_stride, feature_stride, storage)
    # Without a y, x is read twice: that is cheaper to compile than everything twice, and as fast.
    absent = y_address.equals(0)
    y = Matrix(
        code,
        code.either(absent, address, y_address),
        code.either(absent, row_stride, y_row_stride),
        code.either(absent, feature_stride, y_feature_stride),
        storage,
    )
    with code.choice(row_stride.equals(1)) as (feature_major, row_major):
        with feature_major:
            _pack_features(x, y, absent, *rest)
        with row_major:
            _pack_rows(x, y, absent, *rest)
    code.finish()
    return function(module, "pack")


@functools.cache
def unpack_function(target: Target, storage: Storage) -> int:
    """Address of unpack(*`UNPACK`): copies features [first, last) of a tile to `rows` rows of the matrix."""
    module = Module(target)
    code = module.function("unpack", UNPACK)
    tile, width, address, row_stride, feature_stride, *rest = code.arguments
    y = Matrix(code, address, row_stride, feature_stride, storage)
    with code.choice(row_stride.equals(1)) as (feature_major, row_major):
        with feature_major:
            _unpack_features(tile, width, y, *rest)
        with row_major:
            _unpack_rows(tile, width, y, *rest)
    code.finish()
    return function(module, "unpack")


@functools.cache
def _transpose_function(target: Target) -> int:
    """Address of transpose(source, source_stride, target, target_stride, count) on `lanes` × `lanes` float32 numbers.

    Of the target only the first `count` rows are written. It is the longest stretch of code here, so it stands alone.
    """
    module = Module(target)
    code = module.function("transpose", ["source", "source_stride", "target", "target_stride", "count"])
    source, source_stride, to, target_stride, count = code.arguments
    rows = [code.load(source, source_stride * i) for i in range(code.lanes)]
    for i, column in enumerate(interleave(code, rows)):
        with code.when(count >= i + 1):
            code.store(column, to, target_stride * i)
    code.finish()
    return function(module, "transpose")


def _pack_features(
    x: Matrix,
    y: Matrix,
    always: ir.Value,
    sums: Int,
    later: Int,
    row: Int,
    rows: Int,
    first: Int,
    last: Int,
    tile: Int,
    width: Int,
) -> None:
    code, lanes = x.code, x.code.lanes

    def feature(f: Int) -> None:
        def vector(i: Int, total: ir.Value) -> list[ir.Value]:
            mask = code.first_lanes(rows - i)
            loaded = code.where_positive(y.load(row + i, f, mask), x.load(row + i, f, mask), always)
            code.store(loaded, tile, f * width + i)
            return [code.add(total, loaded)]

        (total,) = code.loop(0, rows, vector, [code.zeros()], step=lanes)
        with code.when(sums >= 1):
            code.add_float(code.sum(total), sums, f, later >= 1)

    code.loop(first, last, feature)


def _pack_rows(
    x: Matrix,
    y: Matrix,
    always: ir.Value,
    sums: Int,
    later: Int,
    row: Int,
    rows: Int,
    first: Int,
    last: Int,
    tile: Int,
    width: Int,
) -> None:
    code, lanes = x.code, x.code.lanes
    square, transposing = code.buffer(lanes), code.number(_transpose_function(code.module.target))

    def features(f: Int) -> None:
        inside, nothing = code.first_lanes(last - f), code.first_lanes(0)

        def block(i: Int, total: ir.Value) -> list[ir.Value]:
            def line(j: Int, total: ir.Value) -> list[ir.Value]:
                there = code.builder.select(i + j < rows, inside, nothing)
                condition = y.load(row + i + j, f, there)
                numbers = code.where_positive(condition, x.load(row + i + j, f, there), always)
                code.store(numbers, square, j * lanes)
                return [code.add(total, numbers)]

            (total,) = code.loop(0, lanes, line, [total])
            code.call_address(transposing, square, lanes, tile + (f * width + i) * 4, width, (last - f).min(lanes))
            return [total]

        (total,) = code.loop(0, rows, block, [code.zeros()], step=lanes)
        with code.when(sums >= 1):
            before = code.builder.select(later >= 1, inside, nothing)
            code.store(code.add(total, code.load(sums, f, mask=before)), sums, f, mask=inside)

    code.loop(first, last, features, step=lanes)


def _unpack_features(tile: Int, width: Int, y: Matrix, row: Int, rows: Int, first: Int, last: Int) -> None:
    code, lanes = y.code, y.code.lanes

    def feature(f: Int) -> None:
        def vector(i: Int) -> None:
            loaded = code.load(tile, f * width + i)
            code.store(loaded, y.address, y.place(row + i, f), y.storage, code.first_lanes(rows - i))

        code.loop(0, rows, vector, step=lanes)

    code.loop(first, last, feature)


def _unpack_rows(tile: Int, width: Int, y: Matrix, row: Int, rows: Int, first: Int, last: Int) -> None:
    code, lanes = y.code, y.code.lanes
    square, transposing = code.buffer(lanes), code.number(_transpose_function(code.module.target))

    def features(f: Int) -> None:
        inside = code.first_lanes(last - f)

        def block(i: Int) -> None:
            # What is read behind the last feature is not stored.
            code.call_address(transposing, tile + (f * width + i) * 4, width, square, lanes, lanes)

            def line(j: Int) -> None:
                code.store(code.load(square, j * lanes), y.address, y.place(row + i + j, f), y.storage, inside)

            code.loop(0, (rows - i).min(lanes), line)

        code.loop(0, rows, block, step=lanes)

    code.loop(first, last, features, step=lanes)
