"""What a trainer trains and measures on: three splits, each of which hands out batches by index.

Shape suffixes: B examples of a batch, T positions of a sequence.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.utils.data import default_collate


class Split(Protocol):
    """A fixed, ordered set of examples."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the examples at `indices`, int64 of shape (B,), in that order."""
        ...


@dataclass(frozen=True)
class Data:
    """A task and its three splits. `test` is for the last measurement only; choose by `validation`."""

    name: str
    task: Literal["classification", "language"]
    train: Split
    validation: Split
    test: Split
    # Classes, or the size of the vocabulary.
    classes: int
    # Of one example, without the batch.
    input_shape: tuple[int, ...]
    # "from": where the data lies; "sha256": of its content. Kept with the results of a run.
    source: dict[str, str] = field(default_factory=dict)
    # Tokens back to text, where the task is language.
    decode: Callable[[Tensor], str] | None = None


@dataclass(frozen=True, eq=False)
class TensorSplit:
    """Inputs (n, ...) and targets (n, ...) held in memory."""

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise ValueError(f"inputs and targets must be equally many, got {len(self.inputs)} and {len(self.targets)}")

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        # Twice as fast as indexing, on rows of hundreds of numbers.
        return self.inputs.index_select(0, indices), self.targets.index_select(0, indices)


@dataclass(frozen=True, eq=False)
class TokenSplit:
    """Windows of one stream of tokens (n,), int64. Example i reads `context` tokens from i·stride on.

    Inputs and targets are (B, T), the targets one token later. With stride = context, an epoch predicts every
    token once; with stride = 1, shuffled examples are crops at random places.
    """

    tokens: Tensor
    context: int
    stride: int

    def __post_init__(self) -> None:
        if self.context < 1 or self.stride < 1:
            raise ValueError(
                f"context and stride must be at least 1, got context={self.context} and stride={self.stride}"
            )
        if self.tokens.ndim != 1 or len(self.tokens) <= self.context:
            raise ValueError(
                f"a context of {self.context} needs one stream of at least {self.context + 1} tokens, "
                f"got shape {tuple(self.tokens.shape)}; use a longer text or a shorter context"
            )

    def __len__(self) -> int:
        return (len(self.tokens) - self.context - 1) // self.stride + 1

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        # A view: only the windows asked for are copied.
        windows = self.tokens.unfold(0, self.context + 1, self.stride)[indices]
        return windows[:, :-1], windows[:, 1:]


class MapDataset(Protocol):
    """What `DatasetSplit` asks of a torch `Dataset`: a length, and an (input, target) pair for each index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> object: ...


@dataclass(frozen=True, eq=False)
class DatasetSplit:
    """Any map-style torch `Dataset` whose items are (input, target) pairs that default_collate can stack."""

    dataset: MapDataset

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        collated = default_collate([self.dataset[index] for index in indices.tolist()])
        if not (isinstance(collated, list | tuple) and len(collated) == 2):
            raise TypeError("expected items that are (input, target) pairs; wrap the dataset in one that gives these")
        inputs, targets = collated
        if not (isinstance(inputs, Tensor) and isinstance(targets, Tensor)):
            raise TypeError(
                f"expected inputs and targets that stack to tensors, got {type(inputs).__name__} and "
                f"{type(targets).__name__}; convert the items, for instance in the dataset's transform"
            )
        return inputs, targets


def shuffled(count: int) -> Tensor:
    """The order in which `count` examples are cut into splits: always the same, whatever the run's seed."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))
