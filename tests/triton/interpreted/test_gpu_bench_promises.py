"""The promises about speed, held against points of one run of the GPU bench."""

from __future__ import annotations

from made_up_gpu import SIZE, timed_point

from sparseflow.bench.gpu.point import Point
from sparseflow.bench.gpu.promises import promises


def test_a_step_is_held_against_the_better_dense_backend() -> None:
    points = [
        timed_point("step", "dense", 3.0),
        timed_point("step", "dense-compact", 2.0),
        timed_point("step", "triton", 1.0),
        timed_point("step", "triton alone", 0.1),
        timed_point("step", "dense", 1.0, dtype="bf16"),
        timed_point("step", "triton", 2.0, dtype="bf16"),
        timed_point("step", "planned", 1.0, dtype="bf16"),
    ]
    fp32, bf16 = (figure for figure in promises(points, timed=True) if figure.samples)
    assert (fp32.name, fp32.limit, fp32.aim) == ("fp32 step at 90 % sparse: dense / ours", 1.5, 2.5)
    assert fp32.quartiles == (2, 2, 2) and fp32.verdict == "met"
    # Where nothing but "never slower" is promised, it is what a plan chooses that counts.
    assert bf16.limit == 0.98 and bf16.quartiles == (1, 1, 1) and bf16.verdict == "met"


def test_the_other_promises() -> None:
    points = [
        timed_point("torch-sparse", "torch CSR", 3.0, product="forward"),
        timed_point("torch-sparse", "gather", 1.0, product="forward"),
        timed_point("packing", "triton gather", 0.015, product="pack"),
        timed_point("packing", "triton", 0.02, product="refresh"),
        timed_point("step", "triton", 1.0),
    ]
    csr, pack, refresh = (figure for figure in promises(points, timed=True) if figure.samples)
    assert (csr.limit, csr.quartiles[1], csr.verdict) == (4, 3, "missed")
    assert (pack.limit, pack.unit, pack.quartiles[1], pack.verdict) == (20, "ms", 15, "met")
    assert (refresh.limit, refresh.at_least, refresh.quartiles[1], refresh.verdict) == (0.05, False, 0.02, "met")


def test_a_wrong_library_breaks_no_promise_of_ours() -> None:
    csr = Point("torch-sparse", "torch CSR", "forward", "fp32", 0.1, SIZE, check="row 3 is off")
    figures = promises([csr, timed_point("torch-sparse", "gather", 1.0, product="forward")], timed=True)
    (figure,) = (figure for figure in figures if "CSR" in figure.name)
    assert figure.verdict == "not measured" and "torch CSR is wrong here: row 3 is off" in str(figure)
