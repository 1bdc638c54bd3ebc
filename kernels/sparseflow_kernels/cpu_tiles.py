"""The two inner loops of all sparse CPU kernels.

A tile is a few vectors of batch (or image positions) for each feature, kept in registers over a whole row or column
of the sparse weight: one broadcast weight and one offset then serve `8 * lanes` numbers.

    forward    y[r]  = sum over k in row r     of w[k] x[index[k]]
    backward   dx[c] = sum over k in column c  of w[k] g[index[k]],   dw[k] = <x[c], g[index[k]]>

In the backward every vector of g that is loaded feeds two multiply-adds: the loads, not the arithmetic, bound these
kernels (docs/numerics.md).
"""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from sparseflow_kernels.cpu_ir import Code, Index, Int
from sparseflow_kernels.cpu_shuffle import sums

# Accumulators of a tile: enough to hide the latency of a multiply-add, few enough for sixteen registers.
VECTORS = 8


def weighted_sums(
    code: Code,
    x: Int,
    places: Sequence[Index],
    indices: Int,
    weights: Int,
    first: Int,
    last: Int,
    start: Sequence[ir.Value],
    stride: Index,
) -> list[ir.Value]:
    """start[j] + sum over k in [first, last) of weights[k] * x[indices[k] * stride + places[j]]."""

    def step(k: Int, *accumulated: ir.Value) -> list[ir.Value]:
        base = code.load_int32(indices, k) * stride
        weight = code.splat(code.load_float(weights, k))
        return [code.fma(weight, code.load(x, base + place), a) for place, a in zip(places, accumulated)]

    return code.loop(first, last, step, start)


def gather_weights(code: Code, values: Int, order: Int, gathered: Int, first: Int, last: Int) -> None:
    """gathered[k] = values[order[k]] for k in [first, last): from the order of the values into the forward's."""

    def weight(k: Int) -> None:
        code.store_float(code.load_float(values, code.load_int32(order, k)), gathered, k)

    code.loop(first, last, weight)


def sums_and_products(
    code: Code,
    g: Int,
    places: Sequence[Index],
    indices: Int,
    weights: Int,
    first: Int,
    last: Int,
    start: Sequence[ir.Value],
    stride: Index,
    x: Sequence[ir.Value],
    products: Products,
) -> list[ir.Value]:
    """`weighted_sums` over g, and the product of each g[k] with x handed to `products`.

    An empty `start` leaves the sums out: nobody needs dx.
    """

    def step(k: Int, *accumulated: ir.Value) -> list[ir.Value]:
        base = code.load_int32(indices, k) * stride
        loaded = [code.load(g, base + place) for place in places]
        halves: list[ir.Value] = [code.multiply(x[j], loaded[j]) for j in range(min(2, len(loaded)))]
        for j in range(2, len(loaded)):
            halves[j % 2] = code.fma(x[j], loaded[j], halves[j % 2])
        products.add(k, code.add(*halves) if len(halves) == 2 else halves[0])
        if not accumulated:
            return []
        weight = code.splat(code.load_float(weights, k))
        return [code.fma(weight, vector, a) for vector, a in zip(loaded, accumulated)]

    return code.loop(first, last, step, start)


class Products:
    """Collects one vector of partial products for each k, and sums and stores `lanes` of them at a time.

    It runs on over rows and columns: only the ends of a thread's share are stored under a mask.
    """

    def __init__(self, code: Code, buffer: Int, target: Int, first: Int, accumulate: Int) -> None:
        """`buffer`: room for `lanes` vectors. `target`: float32 array by k. `first`: the share's first k."""
        self.code, self.buffer, self.target = code, buffer, target
        self.first, self.accumulate = first, accumulate

    def add(self, k: Int, partial: ir.Value) -> None:
        code, place = self.code, k & (self.code.lanes - 1)
        code.store(partial, self.buffer, place * code.lanes)
        with code.when(place.equals(code.lanes - 1)):
            self._store(k - place, k + 1)

    def finish(self, last: Int) -> None:
        """Stores what is left after the last k."""
        place = last & (self.code.lanes - 1)
        with self.code.when(place >= 1):
            self._store(last - place, last)

    def _store(self, base: Int, last: Int) -> None:
        # In place rather than as a function: a call would cost the loop all its vector registers.
        code = self.code
        total = sums(code, [code.load(self.buffer, i * code.lanes) for i in range(code.lanes)])
        beyond, before_first = code.first_lanes(last - base), code.first_lanes(self.first - base)
        inside = code.builder.and_(beyond, code.builder.not_(before_first))
        before = code.builder.and_(inside, code.repeat(self.accumulate >= 1))
        code.store(code.add(total, code.load(self.target, base, mask=before)), self.target, base, mask=inside)


def share(code: Code, count: Int, thread: Int, threads: Int, unit: int = 1) -> tuple[Int, Int]:
    """This thread's [first, last) of `count` equal things, in whole units."""
    units = (count + (unit - 1)) // unit
    first, last = units * thread // threads * unit, units * (thread + 1) // threads * unit
    return first.min(count), last.min(count)


def balanced_share(code: Code, pointers: Int, rows: Int, thread: Int, threads: Int) -> tuple[Int, Int]:
    """This thread's [first, last) of `rows`, of about equal work: an int32 prefix sum of nonzeros is given."""

    def work(row: Int) -> Int:
        # A row costs about as much as four nonzeros beside its own.
        return code.load_int32(pointers, row) + row * 4

    def bound(number: Int) -> Int:
        wanted = work(rows) * number // threads

        # Bisection: the first row at which at least that much work lies behind.
        def halve(_: Int, low: ir.Value, high: ir.Value) -> list[ir.Value]:
            below, above = Int(code, low), Int(code, high)
            middle = (below + above) // 2
            enough = work(middle) >= wanted
            return [code.either(enough, below, (middle + 1).min(above)).value, code.either(enough, middle, above).value]

        return Int(code, code.loop(0, 32, halve, [code.raw(0), rows.value])[0])

    return bound(thread), bound(thread + 1)
