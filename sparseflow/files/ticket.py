"""What a file holds: a ticket, or the weights of a model."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from sparseflow.masks.masks import Masks

ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Ticket:
    """A lottery ticket: which weights are kept, and the state to train them from.

    Frankle and Carbin, 2019 (arXiv:1803.03635): the pair (m, θ_0); with rewinding to a later step, (m, θ_k).

    * `masks`: parameter name → bool tensor, True = kept.
    * `rewind`: dense name → tensor, parameters and buffers; the pruned places of masked tensors are zero.
    * `plan`: JSON of the plan that it was made under, or None.
    * `provenance`: JSON that says where it comes from: algorithm, round, seed, versions, metrics and so on.

    Raises ValueError if a mask has no tensor of its shape in `rewind`.
    """

    masks: Masks
    rewind: Mapping[str, Tensor]
    plan: dict[str, object] | None
    provenance: dict[str, object]

    def __post_init__(self) -> None:
        self.masks.check({name: tensor.shape for name, tensor in self.rewind.items()})

    @property
    def density(self) -> float:
        """The fraction kept of all prunable weights."""
        return self.masks.density

    @property
    def round(self) -> int:
        """The round it is for: the number of prunings behind it. ValueError if the provenance has none."""
        number = self.provenance.get("round")
        if not isinstance(number, int):
            raise ValueError(
                f"expected an integer under 'round' in the ticket's provenance, got {number!r}; "
                f"its keys are: {', '.join(sorted(self.provenance)) or 'none'}"
            )
        return number

    @property
    def digest(self) -> str:
        """sha256, in hex, over the masks' digest and each rewind tensor in sorted name order.

        Of a masked tensor only the kept values count, so that the sign of a pruned zero does not matter and
        the digest outlives every format. Costs one pass over the state.
        """
        sha = hashlib.sha256(self.masks.digest.encode())
        for name in sorted(self.rewind):
            tensor = self.rewind[name].detach().cpu()
            head = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
            sha.update(json.dumps(head).encode())
            kept = tensor.masked_select(self.masks[name].cpu()) if name in self.masks else tensor
            sha.update(tensor_bytes(kept))
        return sha.hexdigest()


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights of a model, as read from a file.

    * `state`: dense name → tensor, parameters and buffers, zeros at pruned places.
    * `masks`: the masks of the tensors that have one; empty for a plain safetensors file.
    * `metadata`: JSON that the one who saved it put beside it.

    Raises ValueError if a mask has no tensor of its shape in `state`.
    """

    state: dict[str, Tensor]
    masks: Masks
    metadata: dict[str, object]

    def __post_init__(self) -> None:
        self.masks.check({name: tensor.shape for name, tensor in self.state.items()})

    def into(self, model: ModelT) -> ModelT:
        """Return `model` with these weights in it; the model may be dense or sparse.

        Nothing is loaded unless everything fits. Raises ValueError that names the tensors which are missing,
        unexpected, of another shape, or nonzero where the sparse model has pruned.
        """
        # Backends come in with the layers; whoever only reads files needs none of them.
        from sparseflow.hardware.model import current_masks, dense_state, load_dense_state

        _check_names_and_shapes(self.state, dense_state(model))
        for name, mask in current_masks(model).items():
            lost = int(self.state[name][~mask.to(self.state[name].device)].count_nonzero())
            if lost:
                raise ValueError(
                    f"{lost} nonzero weights of '{name}' lie where the model has pruned; "
                    "sparsify the model with the masks of these weights first"
                )
        load_dense_state(model, self.state)
        return model


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a CPU tensor in row-major order; a view where the tensor is contiguous."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _check_names_and_shapes(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    faults = [f"missing '{name}'" for name in wanted if name not in state]
    faults += [f"unexpected '{name}'" for name in state if name not in wanted]
    faults += [
        f"'{name}' has shape {tuple(state[name].shape)}, the model's has {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if faults:
        shown = "; ".join(faults[:10])
        more = f"; and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise ValueError(f"expected the tensors of the model, got a state that differs: {shown}{more}")
