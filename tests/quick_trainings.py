import gc
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def quick_small_trainings() -> Iterator[None]:
    """One thread, and no full garbage collection after each training, as accelerate asks for: 0.1 s each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gc, "collect", lambda generation=2: 0)
        yield
    torch.set_num_threads(threads)
