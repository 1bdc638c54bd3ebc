"""A transformer by its dimensions: its layers, and its operations counted as published figures count them.

Conventions, pinned by published statements (see `published`): full, not causal attention; the output head is dense
and runs on all tokens; the backward pass costs twice the forward.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparseflow.hardware.wafer.layer import Layer
from sparseflow.hardware.wafer.network import ACTIVATION_BYTES, Network


@dataclass(frozen=True)
class Transformer:
    """Dimensions; `mlp` and `kv_width` are 4·width and width where 0, `gated` adds a third matrix to the MLP."""

    blocks: int
    width: int
    sequence: int
    vocabulary: int
    mlp: int = 0
    kv_width: int = 0
    gated: bool = False

    def __post_init__(self) -> None:
        for name in ("blocks", "width", "sequence", "vocabulary"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")

    @property
    def block_layers(self) -> tuple[Layer, ...]:
        """The matrices of all blocks, dense."""
        hidden, kv = self.mlp or 4 * self.width, self.kv_width or self.width
        sizes = {"q": (self.width, self.width), "k": (kv, self.width), "v": (kv, self.width)}
        sizes |= {"out": (self.width, self.width), "up": (hidden, self.width)}
        if self.gated:
            sizes["gate"] = (hidden, self.width)
        sizes["down"] = (self.width, hidden)
        return tuple(Layer(name, *size, count=self.blocks, tokens=self.sequence) for name, size in sizes.items())

    @property
    def block_weights(self) -> int:
        """Weights of all blocks, which are what is pruned."""
        return sum(layer.count * layer.weights for layer in self.block_layers)

    def forward_flops(self, density: float = 1.0) -> float:
        """Operations of a token's forward pass."""
        attention = 4 * self.blocks * self.sequence * self.width
        return 2 * self.block_weights * density + attention + 2 * self.vocabulary * self.width

    def training_flops(self, density: float = 1.0) -> float:
        """Operations of a sample's forward and backward passes."""
        return 3 * self.sequence * self.forward_flops(density)

    def parameters(self, density: float = 1.0) -> float:
        """Weights of blocks, token embedding and learned positions; the latter two stay dense."""
        return self.block_weights * density + (self.vocabulary + self.sequence) * self.width

    def network(self, density: float = 1.0, imbalance: float | None = None) -> Network:
        """The layers at a density of the blocks' weights. One tensor a block is saved, as where blocks are recomputed;
        the model does not charge for recomputing.
        """
        head = Layer("head", self.vocabulary, self.width, tokens=self.sequence, prunable=False, whole_output=False)
        attention = 3 * 4 * self.blocks * self.sequence * self.width * self.sequence
        saved = self.blocks * self.width * self.sequence * ACTIVATION_BYTES
        return Network((*self.block_layers, head), attention, saved).at(density, imbalance)
