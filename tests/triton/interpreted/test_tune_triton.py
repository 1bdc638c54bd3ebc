"""Timing configurations of a kernel: the fastest is taken, kept, and a failure is one warning."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from sparseflow_kernels.triton_tune import Key, Tuner, config_text, density_bucket, parse_config

KEY = Key("H100", "spmm", 4096, 4096, 8192, torch.float32, 0.1)


@dataclass(frozen=True)
class Config:
    tokens: int
    warps: int = 4


DEFAULT, FAST, SLOW = Config(32), Config(64), Config(128, 8)


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


class Kernel:
    """Runs in as many seconds as is said, by a timer that only asks what ran last."""

    def __init__(self, seconds: dict[Config, float], output: float = 1.0) -> None:
        self.seconds, self.output = seconds, output
        self.ran: list[Config] = []

    def run(self, config: Config) -> Tensor:
        self.ran.append(config)
        return torch.full((3,), self.output)

    def timer(self, run: Callable[[], Tensor]) -> float:
        run()
        seconds = self.seconds[self.ran[-1]]
        if seconds == math.inf:
            raise RuntimeError("out of resource: shared memory\nmore words")
        return seconds


def test_the_fastest_is_taken_and_kept() -> None:
    kernel = Kernel({DEFAULT: 3e-3, FAST: 1e-3, SLOW: 2e-3})
    known: dict[str, object] = {}
    assert Tuner(known, kernel.timer).best(KEY, [FAST, SLOW], DEFAULT, kernel.run) == (FAST, 1e-3)
    assert set(kernel.ran) == {DEFAULT, FAST, SLOW}
    assert known == {str(KEY): ["tokens=64,warps=4", 1e-3]}
    kernel.ran.clear()
    assert Tuner(known, kernel.timer).best(KEY, [FAST, SLOW], DEFAULT, kernel.run) == (FAST, 1e-3)
    assert not kernel.ran


def test_what_was_kept_is_forgotten_where_no_configuration_is_called_so() -> None:
    kernel = Kernel({DEFAULT: 3e-3, SLOW: 2e-3})
    known: dict[str, object] = {str(KEY): ["tokens=64,warps=4", 1e-3]}
    assert Tuner(known, kernel.timer).best(KEY, [SLOW], DEFAULT, kernel.run) == (SLOW, 2e-3)


def test_what_does_not_fit_the_chip_is_passed_over_in_silence() -> None:
    kernel = Kernel({DEFAULT: 3e-3, FAST: math.inf, SLOW: 4e-3})
    assert Tuner({}, kernel.timer).best(KEY, [FAST, SLOW], DEFAULT, kernel.run) == (DEFAULT, 3e-3)


@pytest.mark.parametrize(
    "output, seconds, reason",
    [(1.0, math.inf, "out of resource: shared memory"), (math.nan, 1e-3, "its output is not finite")],
)
def test_a_failure_is_one_warning_that_says_what_is_used(output: float, seconds: float, reason: str) -> None:
    kernel, known = Kernel(dict.fromkeys((DEFAULT, FAST, SLOW), seconds), output), dict[str, object]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = Tuner(known, kernel.timer).best(KEY, [FAST, SLOW], DEFAULT, kernel.run)
    assert found == (DEFAULT, math.inf) and not known
    assert [str(one.message) for one in caught] == [
        f"no configuration of {KEY} could be timed ({reason}); using tokens=32,warps=4"
    ]


def test_without_a_gpu_the_default_is_used_with_a_warning() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.warns(UserWarning, match=r"there is no GPU\); using tokens=32,warps=4"):
        Tuner({}).best(KEY, [FAST], DEFAULT, Kernel({}).run)


def test_the_interpreter_uses_the_default_and_times_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    kernel = Kernel({})
    assert Tuner({}, kernel.timer).best(KEY, [FAST], DEFAULT, kernel.run) == (DEFAULT, math.inf)
    assert not kernel.ran


def test_a_kernel_is_timed_once_and_again_where_it_failed() -> None:
    kernel, known = Kernel({FAST: 1e-3, SLOW: math.inf}), dict[str, object]()
    tuner = Tuner(known, kernel.timer)
    assert [tuner.seconds("fast", lambda: kernel.run(FAST)) for _ in range(2)] == [1e-3, 1e-3]
    assert kernel.ran == [FAST, FAST]
    assert tuner.seconds("slow", lambda: kernel.run(SLOW)) == math.inf
    assert known == {"fast": 1e-3}


def test_layers_of_about_one_size_and_density_share_a_key() -> None:
    near = Key("H100", "spmm", 4000, 4200, 8000, torch.float32, 0.105)
    assert str(near) == str(KEY) == "H100 | spmm | 4096x4096x8192 | float32 | 0.105"
    assert str(replace(KEY, rows=11008)) != str(KEY) != str(replace(KEY, dtype=torch.bfloat16))
    assert density_bucket(0.0) == 0.0
    assert all(abs(density_bucket(d / 1000) / (d / 1000) - 1) < 0.1 for d in range(1, 1001))


def test_a_configuration_survives_its_text() -> None:
    assert parse_config(Config, config_text(SLOW)) == SLOW
    for text in ("tokens=64,size=1", "tokens", "tokens=x", ""):
        with pytest.raises(ValueError, match="expected a configuration such as tokens=N,warps=N, got"):
            parse_config(Config, text)
