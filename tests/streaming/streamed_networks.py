"""Small models of every kind, each with a loss on random data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseflow.models import gpt, lenet_300_100, resnet20


@dataclass(frozen=True)
class Network:
    """make: a new model. loss: of a micro-batch drawn by number."""

    make: Callable[[], nn.Module]
    loss: Callable[[nn.Module, int], Tensor]


def generator(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 + number)


def _images(model: nn.Module, number: int) -> Tensor:
    draw = generator(number)
    x = torch.randn(4, 1, 8, 8, generator=draw)
    return F.cross_entropy(model(x), torch.randint(5, (4,), generator=draw))


def _tokens(model: nn.Module, number: int) -> Tensor:
    tokens = torch.randint(17, (2, 7), generator=generator(number))
    found = model(tokens[:, :-1])
    logits = found if isinstance(found, Tensor) else found.logits
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def _sequences(model: nn.Module, number: int) -> Tensor:
    x = torch.randn(2, 5, 8, generator=generator(number))
    found = model(x)
    y: Tensor = found if isinstance(found, Tensor) else found[0]
    return y.square().mean()


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=17, n_positions=8, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        use_cache=False,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=17, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=8, tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


class Attends(nn.Module):
    """torch's attention, which reads the weight of its child without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return y


class Shared(nn.Module):
    """One layer in two places, one weight in two layers, and a parameter of the model's own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x)) * self.scale
        y: Tensor = self.first(torch.tanh(self.second(x)))
        return y


NETWORKS = {
    "lenet": Network(lambda: lenet_300_100(64, 5), _images),
    "resnet20": Network(lambda: resnet20(5, width=4), _images),
    "gpt": Network(lambda: gpt(17, context=8, layers=2, heads=2, width=16), _tokens),
    "gpt, tied": Network(lambda: gpt(17, context=8, layers=1, heads=2, width=16, tied=True), _tokens),
    "GPT-2": Network(gpt2, _tokens),
    "Llama": Network(llama, _tokens),
    "attention": Network(Attends, _sequences),
    "encoder layer": Network(lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), _sequences),
    "shared": Network(Shared, _sequences),
    "LSTM": Network(lambda: nn.LSTM(8, 6, batch_first=True), _sequences),
}
