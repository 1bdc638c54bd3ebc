"""The convolution CPU kernels against float64, for every geometry, storage and vector width."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparseflow.testing import assert_close
from sparseflow_kernels import cpu_conv, cpu_conv_geometry, reference
from sparseflow_kernels.cpu_conv import Conv
from sparseflow_kernels.cpu_conv_geometry import Axis
from sparseflow_kernels.cpu_conv_structure import conv_structure
from sparseflow_kernels.cpu_scratch import scratch
from sparseflow_kernels.cpu_target import AVX2, Target, host, scalar

TARGETS = {"host": host(), "avx2": AVX2, "one lane": scalar()}
Pair = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """One convolution with random tensors; density 0 keeps a single weight."""

    images: int = 3
    outputs: int = 4
    fan_in: int = 3
    groups: int = 1
    size: Pair = (9, 7)
    kernel: Pair = (3, 3)
    stride: Pair = (1, 1)
    padding: Pair = (1, 1)
    dilation: Pair = (1, 1)
    density: float = 0.4
    relu: bool = False
    dtype: torch.dtype = torch.float32
    target: Target = field(default_factory=host)
    seed: int = 0

    @property
    def out(self) -> Pair:
        first, second = (
            Axis(*numbers).out for numbers in zip(self.size, self.kernel, self.stride, self.padding, self.dilation)
        )
        return first, second

    @property
    def geometry(self) -> tuple[Pair, Pair, Pair, int]:
        return self.stride, self.padding, self.dilation, self.groups


class Tensors:
    """The tensors of a case. Numbers are positive in the mean: sums of them have no cause to cancel."""

    def __init__(self, case: Case) -> None:
        generator = torch.Generator().manual_seed(case.seed)

        def random(*shape: int) -> Tensor:
            return 2 * torch.rand(shape, generator=generator) - 0.5

        channels, outputs = case.fan_in * case.groups, case.outputs * case.groups
        self.mask = torch.rand(outputs, case.fan_in, *case.kernel, generator=generator) < case.density
        self.mask.view(-1)[case.seed % self.mask.numel()] = True
        self.weight, self.bias = random(*self.mask.shape) * self.mask, random(outputs)
        self.x = random(case.images, channels, *case.size).to(case.dtype)
        self.dy = random(case.images, outputs, *case.out).to(case.dtype)
        structure = conv_structure(self.mask, *case.geometry)
        self.values, self.places = self.weight.flatten()[structure.places()], structure.places()
        self.conv = Conv(structure, case.target)

    def forward(self, case: Case, threads: int) -> Tensor:
        return self.conv.forward(self.x, self.values, self.bias, case.relu, threads)

    def backward(self, case: Case, y: Tensor, threads: int) -> tuple[Tensor, Tensor, Tensor]:
        output = y if case.relu else None
        dx, dvalues, dbias = self.conv.backward(self.dy, self.x, output, self.values, True, True, threads)
        assert dx is not None and dbias is not None
        return dx, dvalues, dbias


def check(case: Case, threads: int) -> None:
    made = Tensors(case)
    # What stands in scratch memory must not matter: these bytes are NaN.
    ctypes.memset(scratch(1 << 22), 0xFF, 1 << 22)
    expected = reference.conv2d(made.x, made.weight, made.mask, made.bias, *case.geometry)
    y = made.forward(case, threads)
    assert_close(y, expected.relu() if case.relu else expected, "y")
    dy = made.dy.double() * (y > 0) if case.relu else made.dy.double()
    dx, dweight = reference.conv2d_backward(dy, made.x, made.weight, made.mask, *case.geometry)
    got_dx, got_dvalues, got_dbias = made.backward(case, y, threads)
    assert_close(got_dx, dx, "dx")
    assert_close(got_dvalues, dweight.flatten()[made.places], "dvalues")
    assert_close(got_dbias, dy.sum((0, 2, 3)), "dbias")


@contextlib.contextmanager
def little_strips(little: bool = True) -> Iterator[None]:
    """Cuts images into the smallest strips, and gives every thread its share however little there is to do."""
    with pytest.MonkeyPatch.context() as patch:
        cpu_conv_geometry.geometry.cache_clear()
        if little:
            patch.setattr(cpu_conv_geometry, "_STRIP_BYTES", 1)
            patch.setattr(cpu_conv, "ALONE", 0)
        yield
    cpu_conv_geometry.geometry.cache_clear()


pairs = {
    name: st.tuples(st.sampled_from(choices), st.sampled_from(choices))
    for name, choices in {
        "size": [1, 4, 7, 8, 16, 19, 33],
        "kernel": [1, 2, 3],
        "stride": [1, 1, 2, 3],
        "padding": [0, 1, 2],
        "dilation": [1, 1, 2],
    }.items()
}
cases = st.builds(
    Case,
    images=st.sampled_from([1, 2, 5, 16, 17]),
    outputs=st.sampled_from([1, 2, 5]),
    fan_in=st.sampled_from([1, 3, 4]),
    groups=st.sampled_from([1, 1, 2, 3]),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    relu=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.bfloat16]),
    target=st.just(host()),
    seed=st.integers(0, 99),
    **pairs,
)


@settings(deadline=None, max_examples=15)
@given(case=cases, threads=st.sampled_from([1, 2, 3]), little=st.booleans())
def test_products_and_gradients_are_those_of_float64(case: Case, threads: int, little: bool) -> None:
    assume(min(case.out) >= 1)
    with little_strips(little):
        check(case, threads)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize(
    "case",
    [
        Case(size=(8, 8), images=3),
        Case(size=(16, 20), stride=(2, 2), dtype=torch.bfloat16, relu=True),
        Case(size=(4, 4), kernel=(1, 1), padding=(0, 0)),
    ],
    ids=["3x3", "stride 2", "1x1"],
)
def test_every_vector_width(target: Target, case: Case) -> None:
    check(replace(case, target=target), 1)


def test_lists_that_are_cut_into_blocks() -> None:
    case = Case(outputs=50, fan_in=60, density=0.5, relu=True)
    structure = Tensors(case).conv.structure
    assert structure.forward_blocks == 3 and structure.backward_blocks == 3
    check(case, 1)
    check(replace(case, groups=2, stride=(2, 1)), 1)


@pytest.mark.parametrize("threads", [1, 3])
def test_images_that_are_cut_into_strips(threads: int) -> None:
    with little_strips():
        check(Case(size=(19, 16), images=2, relu=True), threads)
        check(Case(size=(38, 9), stride=(2, 2), images=2), threads)


def test_padding_beyond_the_kernel_leaves_only_the_bias() -> None:
    case = Case(kernel=(1, 1), padding=(2, 2), relu=True)
    check(case, 1)
    made = Tensors(case)
    assert torch.equal(made.forward(case, 1)[:, :, 0, 0], made.bias.relu().expand(3, 4))


def test_channels_without_weights() -> None:
    mask = torch.zeros(3, 4, 3, 3, dtype=torch.bool)
    mask[1, 2, 0, 1] = True
    conv = Conv(conv_structure(mask, padding=(1, 1)), host())
    x, dy = torch.randn(2, 4, 6, 6), torch.randn(2, 3, 6, 6)
    y = conv.forward(x, torch.tensor([2.0]), None, False, 1)
    assert torch.equal(y[:, [0, 2]], torch.zeros(2, 2, 6, 6))
    dx, _, dbias = conv.backward(dy, x, None, torch.tensor([2.0]), True, False, 1)
    assert dx is not None and dbias is None
    assert torch.equal(dx[:, [0, 1, 3]], torch.zeros(2, 3, 6, 6))
    assert torch.equal(dx[:, 2, :-1], 2 * dy[:, 1, 1:])


def test_an_empty_mask_and_an_empty_batch() -> None:
    conv = Conv(conv_structure(torch.zeros(3, 4, 3, 3, dtype=torch.bool)), host())
    x, none = torch.randn(2, 4, 6, 6), torch.zeros(0)
    y = conv.forward(x, none, torch.tensor([1.0, 2.0, 3.0]), False, 1)
    assert torch.equal(y, torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1).expand(2, 3, 4, 4))
    dx, dvalues, dbias = conv.backward(torch.ones_like(y), x, None, none, True, True, 1)
    assert dx is not None and dbias is not None
    assert torch.equal(dx, torch.zeros_like(x)) and dvalues.shape == (0,)
    assert torch.equal(dbias, torch.full((3,), 32.0))
    assert conv.forward(x[:0], none, None, False, 1).shape == (0, 3, 4, 4)
    dx, _, dbias = conv.backward(y[:0], x[:0], None, none, True, True, 1)
    assert dx is not None and dbias is not None and dx.shape == (0, 4, 6, 6)
    assert torch.equal(dbias, torch.zeros(3))


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_number_of_threads_gives_the_same_bits(threads: int) -> None:
    case = Case(images=20, size=(8, 8), relu=True)
    made = Tensors(case)
    with little_strips():
        first = made.forward(case, threads)
        second = made.forward(case, threads)
        assert torch.equal(first, second)
        for one, other in zip(made.backward(case, first, threads), made.backward(case, first, threads)):
            assert torch.equal(one, other)


def test_any_strides_of_the_inputs() -> None:
    case = Case(size=(8, 8), relu=True)
    made = Tensors(case)
    y = made.forward(case, 1)
    expected = made.backward(case, y, 1)
    made.x = made.x.contiguous(memory_format=torch.channels_last)
    made.dy = made.dy.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    made.values = made.values.repeat_interleave(2)[::2]
    assert torch.equal(made.forward(case, 1), y)
    for one, other in zip(made.backward(case, y.contiguous(memory_format=torch.channels_last), 1), expected):
        assert torch.equal(one, other)


BORDERED = {
    "strips": Case(size=(19, 33), images=1, relu=True),
    "interleaved": Case(size=(7, 7), images=5, dtype=torch.bfloat16, relu=True),
    "short rows": Case(size=(8, 8), images=3),
    "strides": Case(size=(9, 10), stride=(2, 3), images=2),
    "1x1": Case(size=(7, 7), kernel=(1, 1), padding=(0, 0), images=17),
}


@pytest.mark.parametrize("case", BORDERED.values(), ids=BORDERED)
def test_nothing_is_written_beyond_the_outputs(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []
    empty = torch.empty

    def bordered(size: tuple[int, ...] | int, dtype: torch.dtype, device: object = None) -> Tensor:
        shape = (size,) if isinstance(size, int) else tuple(size)
        if dtype is torch.uint8:
            return empty(shape, dtype=dtype)
        numbers = int(torch.tensor(shape).prod())
        made.append(torch.full((numbers + 256,), -1000.0, dtype=dtype))
        return made[-1][128 : 128 + numbers].view(shape)

    tensors = Tensors(case)
    monkeypatch.setattr(torch, "empty", bordered)
    tensors.backward(case, tensors.forward(case, 1), 1)
    assert len(made) == 4
    for flat in made:
        assert (flat[:128] == -1000).all() and (flat[-128:] == -1000).all()
        assert not (flat[128:-128] == -1000).any()


@pytest.mark.parametrize("case", BORDERED.values(), ids=BORDERED)
def test_nothing_beyond_the_inputs_is_used(case: Case) -> None:
    tensors = Tensors(case)

    def bordered(tensor: Tensor) -> Tensor:
        flat = torch.full((tensor.numel() + 256,), torch.nan, dtype=tensor.dtype)
        flat[128:-128] = tensor.flatten()
        return flat[128:-128].view(tensor.shape)

    y = tensors.forward(case, 1)
    expected = tensors.backward(case, y, 1)
    for name in ("x", "dy", "values", "bias"):
        setattr(tensors, name, bordered(getattr(tensors, name)))
    assert torch.equal(tensors.forward(case, 1), y)
    for one, other in zip(tensors.backward(case, bordered(y), 1), expected):
        assert torch.equal(one, other)


def test_wrong_shapes_are_refused() -> None:
    conv = Conv(conv_structure(torch.ones(2, 3, 3, 3, dtype=torch.bool)), host())
    values = torch.zeros(54)
    with pytest.raises(ValueError, match=r"expected x of shape \(N, 3, H, W\), got \(1, 4, 8, 8\)"):
        conv.forward(torch.zeros(1, 4, 8, 8), values, None, False, 1)
    with pytest.raises(ValueError, match=r"expected values of shape \(54,\), got \(53,\)"):
        conv.forward(torch.zeros(1, 3, 8, 8), values[1:], None, False, 1)
    with pytest.raises(ValueError, match="expected x of float32 or bfloat16"):
        conv.forward(torch.zeros(1, 3, 8, 8, dtype=torch.float64), values, None, False, 1)
    with pytest.raises(ValueError, match="images of at least the kernel's extent, got 2 x 8"):
        conv.forward(torch.zeros(1, 3, 2, 8), values, None, False, 1)
