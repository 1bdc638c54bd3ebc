"""A network that is cut is reported with the layer that cut it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparseflow as sf


def masks_of(model: nn.Module, empty: tuple[str, ...] = ()) -> dict[str, Tensor]:
    full = sf.prune(model, 1.0)
    return {name: torch.zeros_like(mask) if name in empty else mask.clone() for name, mask in full.items()}


LENET = sf.models.lenet_300_100(inputs=8, classes=3)
IMAGE = torch.zeros(2, 8)


@pytest.mark.parametrize("name", ["fc1.weight", "fc2.weight", "fc3.weight"])
def test_an_empty_layer_of_a_chain_is_named(name: str) -> None:
    assert sf.broken_layer(LENET, masks_of(LENET, (name,)), IMAGE) == name
    with pytest.raises(ValueError, match=rf"the masks cut the network at '{name}', which keeps 0 of"):
        sf.check_connected(LENET, masks_of(LENET, (name,)), IMAGE)


def test_a_full_network_is_connected_whatever_its_weights() -> None:
    model = sf.models.lenet_300_100(inputs=8, classes=3)
    nn.init.zeros_(model.get_parameter("fc2.weight"))
    sf.check_connected(model, masks_of(model), IMAGE)


def test_layers_that_keep_weights_can_still_miss_each_other() -> None:
    masks = masks_of(LENET, ("fc1.weight", "fc2.weight"))
    masks["fc1.weight"][3, 5] = True
    masks["fc2.weight"][7, 4] = True
    assert sf.broken_layer(LENET, masks, IMAGE) == "fc2.weight"
    masks["fc2.weight"][7, 3] = True
    assert sf.broken_layer(LENET, masks, IMAGE) is None


class Residual(nn.Module):
    """A stem, a block around which the input passes, LayerNorm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down, self.head = (nn.Linear(8, 8) for _ in range(4))
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(F.gelu(self.up(x)))
        out: Tensor = self.head(torch.sigmoid(self.norm(x)))
        return out


def test_a_dead_branch_cuts_nothing_and_a_dead_stem_everything() -> None:
    model = Residual()
    assert sf.broken_layer(model, masks_of(model, ("up.weight", "down.weight")), IMAGE) is None
    assert sf.broken_layer(model, masks_of(model, ("up.weight", "stem.weight")), IMAGE) == "stem.weight"
    # Behind a branch that is dead as well, it is the head that matters.
    assert sf.broken_layer(model, masks_of(model, ("down.weight", "head.weight")), IMAGE) == "head.weight"


def test_convolutions_batch_norm_tokens_and_sparse_layers() -> None:
    resnet = sf.models.resnet20(width=2)
    image = torch.zeros(1, 1, 28, 28)
    assert sf.broken_layer(resnet, masks_of(resnet, ("layer1.0.conv1.weight",)), image) is None
    assert sf.broken_layer(resnet, masks_of(resnet, ("conv1.weight",)), image) == "conv1.weight"
    gpt = sf.models.gpt(11, context=8, layers=2, heads=1, width=4)
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    assert (
        sf.broken_layer(gpt, masks_of(gpt, ("blocks.0.attention.v.weight", "blocks.1.mlp.up.weight")), tokens) is None
    )
    assert sf.broken_layer(gpt, masks_of(gpt, ("head.weight",)), tokens) == "head.weight"
    masks = sf.prune(LENET, 0.01, criterion="random", floor=1)
    sparse = sf.sparsify(sf.models.lenet_300_100(inputs=8, classes=3), masks, backend="dense-compact")
    assert sf.broken_layer(sparse, masks, IMAGE) == sf.broken_layer(LENET, masks, IMAGE)


def test_the_model_stays_as_it_is() -> None:
    model = sf.models.resnet20(width=2).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sf.broken_layer(model, masks_of(model), torch.zeros(1, 1, 28, 28))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()) and model.training
