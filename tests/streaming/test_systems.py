"""Several systems and micro-batches: the same bits whoever does which pass."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from masked_reference import Masked, random_masks
from streamed_networks import NETWORKS
from torch import Tensor, nn

import sparseflow as sf
from sparseflow.hardware.streaming.execution import Stream
from sparseflow.hardware.streaming.optimizer import StoreOptimizer
from sparseflow.hardware.streaming.spill import Spill
from sparseflow.hardware.streaming.store import Store
from sparseflow.hardware.streaming.store_parameter import Entry
from sparseflow.hardware.streaming.systems import Passes, TreeSums
from sparseflow.testing import assert_close
from sparseflow.testing.closeness import same_bits

LENET, GPT = NETWORKS["lenet"], NETWORKS["gpt, tied"]
ADAMW = partial(torch.optim.AdamW, lr=0.01, foreach=False)


def streamed(store: Path | None = None, **options: int) -> tuple[nn.Module, StoreOptimizer, Stream]:
    torch.manual_seed(3)
    model: nn.Module = GPT.make()
    model, optimizer = sf.stream(model, ADAMW(model.parameters()), store, random_masks(model, 0.3), **options)
    stream = sf.stream_of(model)
    assert stream is not None
    return model, optimizer, stream


def test_order_is_a_tree_of_neighbours() -> None:
    assert Passes(1, 1).order == []
    assert Passes(4, 1).order == Passes(1, 4).order == [((0, 0), (0, 1)), ((0, 2), (0, 3)), ((1, 0), (1, 1))]
    assert Passes(3, 1).order == [((0, 0), (0, 1)), ((1, 0), (1, 1))]
    assert [Passes(2, 3).system(number) for number in range(6)] == [0, 0, 0, 1, 1, 1]


def by_order(passes: Passes, leaves: list[Tensor]) -> Tensor:
    """The sum as the recorded order says; a node without neighbour goes up as it is."""
    nodes = {(0, i): leaf for i, leaf in enumerate(leaves)}
    for (level, i), right in passes.order:
        nodes[level + 1, i // 2] = nodes[level, i] + nodes[right]
        last = max(index for at, index in nodes if at == level)
        if last % 2 == 0:
            nodes[level + 1, last // 2] = nodes[level, last]
    return nodes[max(nodes)]


@given(count=st.integers(1, 9), shuffle=st.randoms(use_true_random=False))
def test_sums_follow_the_order_whenever_their_parts_come(count: int, shuffle: object) -> None:
    passes = Passes(count)
    leaves = list(torch.randn(count, 50, generator=torch.Generator().manual_seed(count)) * 1e3)
    sums = TreeSums(passes, Spill(Store.create(None, [Entry("w", (50,), None, None)])))
    numbers = list(range(count))
    shuffle.shuffle(numbers)  # type: ignore[attr-defined]
    for number in numbers:
        sums.add("w", number, leaves[number])
    assert same_bits(sums.total("w").clone(), by_order(passes, leaves))
    assert same_bits(sums.total("w").clone(), by_order(passes, leaves))


@given(count=st.integers(1, 9), came=st.sets(st.integers(0, 8), min_size=1))
def test_a_pass_without_a_gradient_is_left_out(count: int, came: set[int]) -> None:
    sums = TreeSums(Passes(count), Spill(Store.create(None, [Entry("w", (3,), None, None)])))
    numbers = sorted({number % count for number in came})
    for number in numbers:
        sums.add("w", number, torch.full((3,), 2.0**number))
    assert sums.total("w").tolist() == [sum(2.0**number for number in numbers)] * 3


@pytest.mark.parametrize("on_disk", [False, True])
def test_one_system_and_four_agree_to_the_bit(on_disk: bool, tmp_path: Path) -> None:
    found = []
    for systems, micro_batches in ((1, 4), (4, 1), (2, 2)):
        folder = tmp_path / f"{systems}" if on_disk else None
        model, optimizer, stream = streamed(folder, systems=systems, micro_batches=micro_batches)
        for step in range(3):
            for number in range(4):
                (GPT.loss(model, 4 * step + number) / 4).backward()
            optimizer.step()
        found.append([stream.read(name) for name in stream.names])
    for other in found[1:]:
        assert all(map(same_bits, found[0], other))


def test_micro_batches_are_those_of_gradient_accumulation() -> None:
    torch.manual_seed(3)
    plain = GPT.make()
    reference = Masked(plain, random_masks(plain, 0.3), partial(torch.optim.SGD, lr=0.1, foreach=False))
    reference.step([partial(lambda model, number: GPT.loss(model, number) / 2, number=n) for n in range(2)])
    torch.manual_seed(3)
    model: nn.Module = GPT.make()
    masks = random_masks(model, 0.3)
    model, optimizer = sf.stream(model, torch.optim.SGD(model.parameters(), lr=0.1), None, masks, micro_batches=2)
    # Both forwards first: each pass has its own gradients.
    losses = [GPT.loss(model, number) / 2 for number in range(2)]
    for loss in losses:
        loss.backward()
    optimizer.step()
    stream = sf.stream_of(model)
    assert stream is not None
    for name, parameter in plain.named_parameters():
        assert_close(stream.read(name), parameter.detach(), name)


def test_weights_leave_once_for_all_systems_and_every_gradient_leaves_one() -> None:
    model, optimizer, stream = streamed(systems=3, micro_batches=2)
    for number in range(6):
        GPT.loss(model, number).backward()
    optimizer.step()
    sent = [message for message in stream.sent if message.name == "blocks.0.mlp.up.weight"]
    out = [message for message in sent if (message.phase, message.direction) == ("forward", "out")]
    assert [message.systems for message in out] == [3, 3]
    assert len([message for message in sent if message.direction == "back"]) == 6


def test_a_step_with_too_few_or_too_many_passes_is_refused() -> None:
    model, optimizer, _ = streamed(systems=2, micro_batches=2)
    for number in range(3):
        GPT.loss(model, number).backward()
    with pytest.raises(ValueError, match=r"expected 4 backward passes before step\(\) \(2 systems with 2.*got 3"):
        optimizer.step()
    GPT.loss(model, 3).backward()
    with pytest.raises(ValueError, match="came for pass 5 of a step that has 4"):
        GPT.loss(model, 4).backward()
    optimizer.zero_grad()
    for number in range(4):
        GPT.loss(model, number).backward()
    optimizer.step()


@pytest.mark.parametrize("max_norm", [0.01, 1e6])
def test_clipping_is_torchs_on_the_kept_values(max_norm: float) -> None:
    make_optimizer = partial(torch.optim.SGD, lr=0.1, foreach=False)
    torch.manual_seed(3)
    plain = LENET.make()
    masks = random_masks(plain, 0.3)
    reference = Masked(plain, masks, make_optimizer)
    clipped: list[Tensor] = []
    reference.optimizer.register_step_pre_hook(
        lambda *_: clipped.append(nn.utils.clip_grad_norm_(reference.values.values(), max_norm, foreach=False))
    )
    reference.step([partial(LENET.loss, number=0)])
    torch.manual_seed(3)
    model: nn.Module = LENET.make()
    model, optimizer = sf.stream(model, make_optimizer(model.parameters()), None, masks, spill=True)
    LENET.loss(model, 0).backward()
    assert_close(optimizer.clip_grad_norm_(max_norm), clipped[0])
    optimizer.step()
    stream = sf.stream_of(model)
    assert stream is not None
    for name, parameter in plain.named_parameters():
        assert_close(stream.read(name), parameter.detach(), name)
