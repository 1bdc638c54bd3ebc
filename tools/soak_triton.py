"""Every case of the conformance kit for the backend `triton` under Triton's interpreter, in two processes: minutes.

python tools/soak_triton.py [EVERY]        1 by default; 9 tries one in nine
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

_SHARES = 8


def main(every: int) -> int:
    """Raises what the kit raises."""
    os.environ["TRITON_INTERPRET"] = "1"
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        for first in pool.map(_check, [(every * _SHARES, every * number) for number in range(_SHARES)]):
            print(f"cases {first}, {first + every * _SHARES}, ... keep every rule", flush=True)
    return 0


def _check(share: tuple[int, int]) -> int:
    import torch

    from sparseflow.hardware.backends.triton import Triton
    from sparseflow.testing import check_backend

    torch.set_num_threads(1)
    every, first = share
    check_backend(Triton(), every, first)
    return first


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1))
