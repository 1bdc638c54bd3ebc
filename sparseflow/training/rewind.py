"""theta_k on the disk: in a directory of its own, with a copy beside the weights of each of the newest rounds."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from sparseflow.files.part import tensors_part
from sparseflow.files.readers import read_tensors
from sparseflow.files.shelf import Shelf

FILE = "rewind.safetensors"
_NAME = "rewind"


class RewindPoint:
    """The rewind point of a search, kept on its shelf. All ranks call every method alike."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    @property
    def digest(self) -> str | None:
        """sha256 of its file, equal for equal states; None where there is none that is valid."""
        manifest = self._shelf.valid(_NAME)
        return None if manifest is None else manifest.files[FILE].sha256

    def keep(self, state: dict[str, Tensor]) -> None:
        """Keeps the state, which is rank 0's, unless it is the one that is kept already."""
        digest = self.digest
        if not self._shelf.ranks.first(lambda: digest is not None and tensors_part(state).sha256 == digest):
            self._shelf.commit(_NAME, lambda: {FILE: tensors_part(state)})

    def read(self, copies: Iterable[str]) -> dict[str, Tensor]:
        """The state, on the CPU; from the first valid directory of `copies` where its own is damaged, and kept again.

        `ValueError` where none is valid.
        """
        if self.digest is None:
            copy = next((name for name in copies if self._shelf.valid(name)), None)
            if copy is not None:
                self.keep(self._shelf.read(copy, FILE, read_tensors))
        return self._shelf.read(_NAME, FILE, read_tensors)
