"""The copies between activations in memory and the tiles of the CPU kernels, compiled once a process.

A tile is feature-major: tile[feature * width + row]. Activations are row-major or feature-major, as their strides say.
"""

from __future__ import annotations

import functools

from llvmlite import ir

from sparseflow_kernels.cpu_ir import Code, Index, Int, Module, Storage
from sparseflow_kernels.cpu_jit import Library, link
from sparseflow_kernels.cpu_shuffle import transpose
from sparseflow_kernels.cpu_target import Target
from sparseflow_kernels.cpu_tiles import VECTORS

_MATRIX = ["address", "row_stride", "feature_stride"]
_PACK = [*_MATRIX, *("y_" + name for name in _MATRIX), "sums", "later", "row", "rows", "first", "last", "tile"]
_UNPACK = ["tile", *_MATRIX, "row", "rows", "first", "last"]


class Matrix:
    """A (rows, features) tensor of activations in memory."""

    def __init__(self, code: Code, address: Int, row: Int, feature: Int, storage: Storage) -> None:
        self.code, self.address, self.row, self.feature, self.storage = code, address, row, feature, storage

    def place(self, row: Index, feature: Index) -> Int:
        return self.row * row + self.feature * feature

    def load(self, row: Index, feature: Index, mask: ir.Value) -> ir.Value:
        return self.code.load(self.address, self.place(row, feature), self.storage, mask)

    def raw(self) -> list[Int]:
        return [self.address, self.row, self.feature]


def pack(
    x: Matrix,
    row: Int,
    rows: Int,
    first: Int,
    last: Int,
    tile: Int,
    positive: Matrix | None = None,
    row_sums: tuple[Int, Int] | None = None,
) -> None:
    """Copies features [first, last) of `rows` rows from `row` on into a tile, with zeros behind them.

    `positive`: numbers are cleared where that matrix is not above 0. `row_sums`: an array to which each feature's
    sum is written, or added where the integer beside it is not 0.
    """
    code = x.code
    name = _link(code, x.storage, "pack" if positive is None else "pack_positive")
    y = [code.int(0)] * 3 if positive is None else positive.raw()
    sums, later = (code.int(0), code.int(0)) if row_sums is None else row_sums
    code.call(name, *x.raw(), *y, sums, later, row, rows, first, last, tile)


def unpack(tile: Int, y: Matrix, row: Int, rows: Int, first: Int, last: Int) -> None:
    """Copies features [first, last) of a tile to `rows` rows of the matrix, from `row` on."""
    y.code.call(_link(y.code, y.storage, "unpack"), tile, *y.raw(), row, rows, first, last)


def _link(code: Code, storage: Storage, name: str) -> str:
    return link(code.module, _library(code.module.target, storage), name)


@functools.cache
def _library(target: Target, storage: Storage) -> Library:
    module = Module(target)
    _write_pack(module.function("pack", _PACK), storage, False)
    _write_pack(module.function("pack_positive", _PACK), storage, True)
    _write_unpack(module.function("unpack", _UNPACK), storage)
    return Library(module, {"pack": len(_PACK), "pack_positive": len(_PACK), "unpack": len(_UNPACK)})


def _write_pack(code: Code, storage: Storage, masked: bool) -> None:
    a = dict(zip(_PACK, code.arguments))
    x = Matrix(code, a["address"], a["row_stride"], a["feature_stride"], storage)
    y = Matrix(code, a["y_address"], a["y_row_stride"], a["y_feature_stride"], storage) if masked else None
    where = (a["row"], a["rows"], a["first"], a["last"], a["tile"])
    with code.choice(x.row.equals(1)) as (feature_major, row_major):
        with feature_major:
            _pack_features(x, *where, y, a["sums"], a["later"])
        with row_major:
            _pack_rows(x, *where, y, a["sums"], a["later"])
    code.finish()


def _write_unpack(code: Code, storage: Storage) -> None:
    tile, address, row_stride, feature_stride, row, rows, first, last = code.arguments
    y = Matrix(code, address, row_stride, feature_stride, storage)
    with code.choice(y.row.equals(1)) as (feature_major, row_major):
        with feature_major:
            _unpack_features(tile, y, row, rows, first, last)
        with row_major:
            _unpack_rows(tile, y, row, rows, first, last)
    code.finish()


def _pack_features(
    x: Matrix, row: Int, rows: Int, first: Int, last: Int, tile: Int, y: Matrix | None, sums: Int, later: Int
) -> None:
    code, lanes = x.code, x.code.lanes

    def feature(f: Int) -> None:
        def vector(i: Int, total: ir.Value) -> list[ir.Value]:
            mask = code.first_lanes(rows - i)
            loaded = x.load(row + i, f, mask)
            if y is not None:
                loaded = code.where_positive(y.load(row + i, f, mask), loaded)
            code.store(loaded, tile, f * (VECTORS * lanes) + i)
            return [code.add(total, loaded)]

        (total,) = code.loop(0, rows, vector, [code.zeros()], step=lanes)
        with code.when(sums >= 1):
            code.add_float(code.sum(total), sums, f, later >= 1)

    code.loop(first, last, feature)


def _pack_rows(
    x: Matrix, row: Int, rows: Int, first: Int, last: Int, tile: Int, y: Matrix | None, sums: Int, later: Int
) -> None:
    code, lanes = x.code, x.code.lanes

    def features(f: Int) -> None:
        inside, nothing = code.first_lanes(last - f), code.first_lanes(0)

        def block(i: Int, total: ir.Value) -> list[ir.Value]:
            loaded: list[ir.Value] = []
            for j in range(lanes):
                there = code.builder.select(i + j < rows, inside, nothing)
                numbers = x.load(row + i + j, f, there)
                if y is not None:
                    numbers = code.where_positive(y.load(row + i + j, f, there), numbers)
                loaded.append(numbers)
                total = code.add(total, numbers)
            for j, column in enumerate(transpose(code, loaded)):
                with code.when(f + j < last):
                    code.store(column, tile, (f + j) * (VECTORS * lanes) + i)
            return [total]

        (total,) = code.loop(0, rows, block, [code.zeros()], step=lanes)
        with code.when(sums >= 1):
            before = code.builder.select(later >= 1, inside, nothing)
            code.store(code.add(total, code.load(sums, f, mask=before)), sums, f, mask=inside)

    code.loop(first, last, features, step=lanes)


def _unpack_features(tile: Int, y: Matrix, row: Int, rows: Int, first: Int, last: Int) -> None:
    code, lanes = y.code, y.code.lanes

    def feature(f: Int) -> None:
        def vector(i: Int) -> None:
            loaded = code.load(tile, f * (VECTORS * lanes) + i)
            code.store(loaded, y.address, y.place(row + i, f), y.storage, code.first_lanes(rows - i))

        code.loop(0, rows, vector, step=lanes)

    code.loop(first, last, feature)


def _unpack_rows(tile: Int, y: Matrix, row: Int, rows: Int, first: Int, last: Int) -> None:
    code, lanes = y.code, y.code.lanes

    def features(f: Int) -> None:
        inside = code.first_lanes(last - f)

        def block(i: Int) -> None:
            columns = [code.load(tile, (f + j).min(last - 1) * (VECTORS * lanes) + i) for j in range(lanes)]
            numbers = transpose(code, columns)
            full = code.builder.and_(i + lanes < rows + 1, f + lanes < last + 1)
            with code.choice(full) as (whole, part):
                with whole:
                    for j in range(lanes):
                        code.store(numbers[j], y.address, y.place(row + i + j, f), y.storage)
                with part:
                    for j in range(lanes):
                        with code.when(i + j < rows):
                            code.store(numbers[j], y.address, y.place(row + i + j, f), y.storage, inside)

        code.loop(0, rows, block, step=lanes)

    code.loop(first, last, features, step=lanes)
