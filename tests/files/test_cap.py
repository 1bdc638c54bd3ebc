"""The limit on what a file may take in memory."""

from pathlib import Path

import pytest
import torch
from raw_files import saved
from safetensors.torch import save_file

from sparseflow.files import SparseFormatError, load


def test_the_cap_holds_for_plain_files_and_can_be_raised(tmp_path: Path) -> None:
    path = tmp_path / "plain"
    save_file({"w": torch.ones(10, 10)}, path)
    with pytest.raises(SparseFormatError, match="at most 399 bytes in memory, the file needs 400; raise max_dense"):
        load(path, max_dense_bytes=399)
    load(path, max_dense_bytes=400)


@pytest.mark.parametrize("format", ["compact", "dense"])
def test_the_cap_counts_the_masks_in_either_form(tmp_path: Path, format: str) -> None:
    path = tmp_path / "ticket"
    saved(path, format)
    # Four bytes a float32 weight, two a bfloat16, one for each place of a mask; then bias, flags and counter.
    needed = 5 * (15 + 400) + 3 * 16 + 12 + 3 + 8
    with pytest.raises(SparseFormatError, match=f"the file needs {needed};"):
        load(path, max_dense_bytes=needed - 1)
    load(path, max_dense_bytes=needed)
