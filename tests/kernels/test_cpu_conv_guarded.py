"""Every input of a convolution ends where a page begins that may not be touched: a wrong read is a crash."""

from __future__ import annotations

import subprocess
import sys

import torch
from guarded_inputs import guarded
from test_cpu_conv import BORDERED, Tensors


def test_nothing_is_read_beyond_the_inputs() -> None:
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["calls", "10"]


def main() -> None:
    calls = 0
    for case in BORDERED.values():
        tensors = Tensors(case)
        y = tensors.forward(case, 1)
        tensors.x, tensors.dy = guarded(tensors.x), guarded(tensors.dy)
        tensors.values, tensors.bias = guarded(tensors.values), guarded(tensors.bias)
        assert torch.equal(tensors.forward(case, 1), y)
        tensors.backward(case, guarded(y), 1)
        calls += 2
    print("calls", calls)


if __name__ == "__main__":
    main()
