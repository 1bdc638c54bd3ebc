"""The linear CPU kernels against float64, for every layout, size and vector width."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_case import LinearCase
from torch import Tensor

from sparseflow.testing import assert_close
from sparseflow_kernels import reference
from sparseflow_kernels.cpu_jit import _libraries
from sparseflow_kernels.cpu_linear import Linear
from sparseflow_kernels.cpu_structure import structure
from sparseflow_kernels.cpu_target import AVX2, Target, host, scalar

TARGETS = {"host": host(), "avx2": AVX2, "one lane": scalar()}

cases = st.builds(
    LinearCase,
    outputs=st.sampled_from([1, 7, 33, 64, 129]),
    inputs=st.sampled_from([1, 7, 33, 64, 130]),
    rows=st.sampled_from([1, 2, 7, 16, 60, 120, 128, 129, 300]),
    density=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    block=st.sampled_from([1, 16, 128]),
    target=st.just(host()),
    x_feature_major=st.booleans(),
    y_feature_major=st.booleans(),
    relu=st.booleans(),
    seed=st.integers(0, 10**6),
)


def check(case: LinearCase, threads: int) -> None:
    expected = reference.linear(case.x, case.weight, case.mask, case.bias)
    y = case.forward(threads)
    assert_close(y, expected.relu() if case.relu else expected, "y")
    dy = case.dy.double() * (y > 0) if case.relu else case.dy
    dx, dweight = reference.linear_backward(dy, case.x, case.weight, case.mask)
    got_dx, got_dvalues, got_dbias = case.backward(y, threads)
    assert got_dx is not None and got_dbias is not None
    assert_close(got_dx, dx, "dx")
    assert_close(got_dvalues.to(y.dtype), case.native(dweight), "dvalues")
    assert_close(got_dbias, dy.double().sum(0), "dbias")
    assert (y.stride(0) == 1) == (case.y_feature_major or case.outputs == 1)


@pytest.mark.parametrize("threads", [1, 2])
@settings(deadline=None, max_examples=60)
@given(case=cases)
def test_products_and_gradients_are_those_of_float64(case: LinearCase, threads: int) -> None:
    check(case, threads)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("feature_major", [False, True])
def test_every_vector_width_and_storage(target: Target, dtype: torch.dtype, feature_major: bool) -> None:
    for rows in (1, 60, 129):
        layouts = {"x_feature_major": feature_major, "y_feature_major": not feature_major, "relu": feature_major}
        check(LinearCase(33, 70, rows, 0.2, 16, target, dtype=dtype, **layouts), 1)


@pytest.mark.parametrize("rows", [1, 60, 128, 300])
def test_results_do_not_depend_on_the_number_of_threads(rows: int) -> None:
    case = LinearCase(300, 200, rows, 0.3, 64, host(), relu=True)
    y = case.forward(1)
    assert torch.equal(case.forward(2), y)
    for one, two in zip(case.backward(y, 1), case.backward(y, 2)):
        assert one is not None and two is not None
        assert torch.equal(one, two)


def test_what_is_not_needed_is_not_made() -> None:
    case = LinearCase(33, 20, 60, 0.3, 16, host())
    dx, dvalues, dbias = case.backward(case.forward(), need_dx=False, need_dbias=False)
    assert dx is None and dbias is None
    assert torch.equal(dvalues, case.backward(case.forward())[1])


@pytest.mark.parametrize("rows", [7, 128])
def test_strided_inputs_are_read_where_they_are(rows: int) -> None:
    case = LinearCase(33, 20, rows, 0.3, 16, host())
    wanted = case.forward()
    wide = torch.full((rows, 50), torch.nan)
    wide[:, 10:30] = case.x
    every_third = torch.full((rows, 60), torch.nan)
    every_third[:, ::3] = case.x
    one_row = case.x[:1].expand(rows, 20)
    for x, expected in ((wide[:, 10:30], wanted), (every_third[:, ::3], wanted)):
        case.x = x
        assert torch.equal(case.forward(), expected)
    case.x = one_row
    assert torch.equal(case.forward(), wanted[:1].expand(rows, 33))


def test_a_batch_without_rows() -> None:
    case = LinearCase(33, 20, 0, 0.3, 16, host())
    y = case.forward()
    dx, dvalues, dbias = case.backward(y)
    assert y.shape == (0, 33) and dx is not None and dx.shape == (0, 20)
    assert dbias is not None and not dvalues.any() and not dbias.any()


def test_a_weight_with_nothing_kept_gives_the_bias() -> None:
    case = LinearCase(5, 4, 3, 0.5, 16, host())
    linear = Linear(structure(torch.zeros(5, 4, dtype=torch.bool), 16, 16), host())
    values = torch.empty(0)
    assert torch.equal(linear.forward(case.x, values, case.bias, False, False, 1), case.bias.expand(3, 5))
    dx, dvalues, _ = linear.backward(case.dy, case.x, None, values, True, True, 1)
    assert dx is not None and not dx.any() and dvalues.numel() == 0


def test_nan_and_infinity_pass_through_the_relu_like_in_torch() -> None:
    case = LinearCase(3, 3, 2, 1.0, 16, host(), relu=True)
    case.bias = torch.tensor([torch.nan, torch.inf, -torch.inf])
    y = case.forward()
    assert y[:, 0].isnan().all() and y[:, 1].isposinf().all() and not y[:, 2].any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda case: setattr(case, "x", case.x[:, :-1]), r"expected x of shape \(rows, 20\), got \(60, 19\)"),
        (lambda case: setattr(case, "x", case.x.double()), "expected float32 or bfloat16, got torch.float64"),
        (lambda case: setattr(case, "x", case.x.to("meta")), "expected tensors on the CPU, got meta"),
    ],
)
def test_a_wrong_input_is_refused_before_the_kernel(change: object, words: str) -> None:
    case = LinearCase(33, 20, 60, 0.3, 16, host())
    assert callable(change)
    change(case)
    with pytest.raises(ValueError, match=words):
        case.forward()


def test_values_of_another_length_are_refused() -> None:
    case = LinearCase(33, 20, 60, 0.3, 16, host())
    values = case.native(case.weight)
    with pytest.raises(ValueError, match=f"expected {values.numel()} values, got shape"):
        case.linear.forward(case.x, values[1:], None, False, False, 1)
    with pytest.raises(ValueError, match=r"expected a bias of shape \(33,\), got \(32,\)"):
        case.linear.forward(case.x, values, case.bias[1:], False, False, 1)
    with pytest.raises(ValueError, match=r"dy: expected \(60, 33\)"):
        case.linear.backward(case.dy[1:], case.x, None, values, True, True, 1)


def test_a_gradient_of_another_dtype_is_refused_after_a_good_call_too() -> None:
    case = LinearCase(33, 20, 64, 0.3, 16, host(), relu=True)
    y = case.forward()
    case.backward(y)
    with pytest.raises(ValueError, match="y: expected"):
        case.backward(y[:1])
    case.dy = case.dy.bfloat16()
    with pytest.raises(ValueError, match="dy: expected"):
        case.backward(y)


def test_a_bias_is_read_by_its_strides() -> None:
    case = LinearCase(33, 20, 60, 0.3, 16, host())
    expected = case.forward()
    case.bias = torch.stack([case.bias, torch.zeros(33)], 1)[:, 0]
    assert not case.bias.is_contiguous()
    assert torch.equal(case.forward(), expected)


def test_relu_passes_gradients_at_nan_like_torch() -> None:
    case = LinearCase(3, 3, 20, 1.0, 16, host(), relu=True)
    case.bias = torch.tensor([torch.nan, 100.0, -100.0])
    dbias = case.backward(case.forward())[2]
    assert dbias is not None
    torch.testing.assert_close(dbias, case.dy.sum(0) * torch.tensor([1.0, 1.0, 0.0]))


def test_a_default_device_changes_nothing() -> None:
    case = LinearCase(33, 20, 60, 0.3, 16, host())
    expected = case.forward()
    with torch.device("meta"):
        assert torch.equal(case.forward(), expected)
        assert Linear(structure(case.mask, 16, 16), host()).structure.rows.is_cpu


def test_libraries_are_found_in_a_memory_map_whose_paths_hold_spaces() -> None:
    maps = (
        "7f00-7f01 r-xp 00000000 08:01 123    /home/my user/torch/lib/libgomp.so.1\n"
        "7f02-7f03 r--p 00000000 08:01 124    /opt/sklearn/libgomp-a34b.so.1 (deleted)\n"
        "7f04-7f05 rw-p 00000000 00:00 0\n"
    )
    assert {str(path) for path in _libraries(maps)} == {
        "/home/my user/torch/lib/libgomp.so.1",
        "/opt/sklearn/libgomp-a34b.so.1",
    }


def test_nothing_is_written_beyond_the_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []
    empty = torch.empty

    def bordered(numbers: int, dtype: torch.dtype) -> Tensor:
        made.append(torch.full((numbers + 256,), 7.0, dtype=dtype))
        return made[-1][128 : 128 + numbers]

    def strided(shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype, device: object) -> Tensor:
        flat = bordered(shape[0] * shape[1], dtype)
        return flat.as_strided(shape, strides, flat.storage_offset())

    def plain(size: int | torch.Size, dtype: torch.dtype, device: object = None) -> Tensor:
        number = size if isinstance(size, int) else size.numel()
        return empty(size, dtype=dtype) if dtype is torch.uint8 else bordered(number, dtype)

    monkeypatch.setattr(torch, "empty_strided", strided)
    monkeypatch.setattr(torch, "empty", plain)
    for rows in (1, 60, 129):
        for feature_major in (False, True):
            layouts = {"x_feature_major": feature_major, "y_feature_major": feature_major, "relu": feature_major}
            for dtype in (torch.float32, torch.bfloat16):
                case = LinearCase(33, 21, rows, 0.3, 16, host(), dtype=dtype, **layouts)
                made.clear()
                case.backward(case.forward())
                assert len(made) == 4
                for flat in made:
                    assert (flat[:128] == 7).all() and (flat[-128:] == 7).all()


@pytest.mark.parametrize("target", ["host", "avx2"])
def test_nothing_is_read_beyond_the_inputs(target: str) -> None:
    """Every input ends where a page begins that may not be touched."""
    script = Path(__file__).with_name("guarded_inputs.py")
    done = subprocess.run([sys.executable, str(script), target], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["calls", "24"]
