"""The models of the experiments: plain PyTorch, every layer prunable, small enough for a CPU.

Every function draws its weights from torch's global generator: seed it first.

Shape suffixes of images: N images, C channels, H height, W width, K classes. Of text: B sequences,
T positions, I features, V vocabulary; in attention H heads of D features.
"""

from collections.abc import Callable, Mapping
from math import sqrt

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from sparseflow.kan import kan as kan
from sparseflow.resolve import call, choose


def lenet_300_100(inputs: int = 784, classes: int = 10, width: float = 1.0) -> nn.Module:
    """LeNet-300-100: three linear layers, 266,200 prunable weights for 784 inputs and 10 classes.

    Flattens its input. Initialised as in Frankle & Carbin, 2019 (arXiv:1803.03635): Glorot normal, truncated
    at two standard deviations; biases zero. With `width` the two hidden layers have so many times their units.
    """
    hidden, last_hidden = round(300 * width), round(100 * width)
    _require_positive(inputs=inputs, classes=classes, hidden=hidden, last_hidden=last_hidden)
    return LeNet(inputs, hidden, last_hidden, classes)


def resnet20(classes: int = 10, channels: int = 1, width: int = 16) -> nn.Module:
    """ResNet-20 for images of 28×28 or 32×32 (He et al., 2016, arXiv:1512.03385, section 4.2).

    Stages of `width`, 2·`width` and 4·`width` channels. Shortcuts are the paper's option A, strided identity
    padded with zero channels: no weights in them, so that pruning can never cut the residual path.
    Convolutions and the head are Kaiming normal by fan-in, the head's bias zero.
    """
    _require_positive(classes=classes, channels=channels, width=width)
    return ResNet20(classes, channels, width)


def gpt(
    vocabulary: int, context: int = 128, layers: int = 4, heads: int = 4, width: int = 128, tied: bool = False
) -> nn.Module:
    """A pre-norm GPT with learned positions: tokens (B, T) → logits (B, T, V), for T up to `context`.

    Query, key, value and output are separate linear layers, so that each is pruned by itself. With `tied` the
    head shares the embedding's weight, and is then not prunable. Weights are normal with standard deviation
    0.02, divided by √(2·layers) where a layer writes to the residual stream (Radford et al., 2019, "Language
    Models are Unsupervised Multitask Learners", section 2.3).
    """
    _require_positive(vocabulary=vocabulary, context=context, layers=layers, heads=heads, width=width)
    if width % heads:
        raise ValueError(f"width must be a multiple of heads, got width={width} and heads={heads}")
    return GPT(vocabulary, context, layers, heads, width, tied)


def build(name: str, options: Mapping[str, object]) -> nn.Module:
    """The model that a recipe names: one of ours, or `module:function` of the user's, called with `options`.

    Raises ValueError for an unknown name or option and TypeError for a value or a result of the wrong type.
    """
    model = call(choose("model", name, MODELS), options, name)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model {name!r} must return a torch.nn.Module, got {type(model).__name__}")
    return model


MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet_300_100": lenet_300_100,
    "resnet20": resnet20,
    "gpt": gpt,
    "kan": kan,
}


class LeNet(nn.Module):
    """See `lenet_300_100`."""

    def __init__(self, inputs: int, hidden: int, last_hidden: int, classes: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, last_hidden)
        self.fc3 = nn.Linear(last_hidden, classes)
        for layer in (self.fc1, self.fc2, self.fc3):
            # Cutting a normal at two standard deviations shrinks its own by this factor.
            std = sqrt(2 / (layer.in_features + layer.out_features)) / 0.87962566
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.relu(self.fc2(x))
        logits_NK: Tensor = self.fc3(x)
        return logits_NK


class ResNet20(nn.Module):
    """See `resnet20`."""

    def __init__(self, classes: int, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels, width, stride=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, stride=1)
        self.layer2 = _stage(width, 2 * width, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, stride=2)
        self.fc = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = F.relu(self.bn1(self.conv1(x_NCHW)))
        x_NCHW = self.layer3(self.layer2(self.layer1(x_NCHW)))
        logits_NK: Tensor = self.fc(reduce(x_NCHW, "n c h w -> n c", "mean"))
        return logits_NK


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with BatchNorm and a shortcut without weights."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.added_channels = out_channels - channels
        self.conv1 = _conv3x3(channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = _conv3x3(out_channels, out_channels, stride=1)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW = F.relu(self.bn1(self.conv1(x_NCHW)))
        y_NCHW = self.bn2(self.conv2(y_NCHW))
        shortcut_NCHW = x_NCHW[:, :, :: self.stride, :: self.stride]
        return F.relu(y_NCHW + F.pad(shortcut_NCHW, (0, 0, 0, 0, 0, self.added_channels)))


class GPT(nn.Module):
    """See `gpt`."""

    def __init__(self, vocabulary: int, context: int, layers: int, heads: int, width: int, tied: bool) -> None:
        super().__init__()
        self.context = context
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(heads, width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.tokens.weight
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                writes_to_residual = name.endswith((".attention.out", ".mlp.down"))
                nn.init.normal_(module.weight, std=0.02 / (sqrt(2 * layers) if writes_to_residual else 1))
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        length = tokens_BT.shape[1]
        if length > self.context:
            raise ValueError(f"this model reads at most {self.context} tokens (its context), got {length}")
        # Through the module, not by slicing its weight: ZeRO-3 gathers a weight for its module's call.
        x_BTI: Tensor = self.tokens(tokens_BT) + self.positions(torch.arange(length, device=tokens_BT.device))
        for block in self.blocks:
            x_BTI = block(x_BTI)
        logits_BTV: Tensor = self.head(self.norm(x_BTI))
        return logits_BTV


class Block(nn.Module):
    """One layer of a GPT: attention and MLP, each after its LayerNorm and added to the residual stream."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(heads, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, x_BTI: Tensor) -> Tensor:
        x_BTI = x_BTI + self.attention(self.norm1(x_BTI))
        x_BTI = x_BTI + self.mlp(self.norm2(x_BTI))
        return x_BTI


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BTI: Tensor) -> Tensor:
        q, k, v = (
            rearrange(project(x_BTI), "b t (h d) -> b h t d", h=self.heads) for project in (self.q, self.k, self.v)
        )
        y_BHTD = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y_BTI: Tensor = self.out(rearrange(y_BHTD, "b h t d -> b t (h d)"))
        return y_BTI


class MLP(nn.Module):
    """Four times as wide inside, with GELU between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x_BTI: Tensor) -> Tensor:
        y_BTI: Tensor = self.down(F.gelu(self.up(x_BTI)))
        return y_BTI


def _stage(channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        BasicBlock(channels, out_channels, stride),
        BasicBlock(out_channels, out_channels, stride=1),
        BasicBlock(out_channels, out_channels, stride=1),
    )


def _conv3x3(channels: int, out_channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)


def _require_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
