"""The trainer against a loop written out in plain PyTorch, and what it must refuse."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from tiny_task import SGD, Net, blobs, differing, snapshot, tiny_trainer
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from sparseflow.data import Data, DatasetSplit, Split, TensorSplit
from sparseflow.training.evaluation import evaluate
from sparseflow.training.schedules import multistep
from sparseflow.training.seeds import derive
from sparseflow.training.trainer import Stopped, Trained, Trainer


def trained_by_hand(trainer: Trainer, model: nn.Module, start: int, rates: list[float]) -> None:
    """Steps of SGD with momentum, at the learning rate of each step, in the trainer's order and noise."""
    optimizer = SGD(model.parameters())
    model.train()
    for step in range(start, trainer.steps):
        torch.manual_seed(derive(trainer.seed, "noise") + step)
        x, y = trainer.data.train.batch(trainer.order.indices(step))
        optimizer.param_groups[0]["lr"] = rates[step]
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@pytest.mark.parametrize("start", [0, 2])
def test_training_is_the_plain_loop_bit_for_bit(start: int) -> None:
    trainer = tiny_trainer(schedule=multistep([4], drop=0.5))
    by_hand = trainer.build()
    by_hand.load_state_dict(trainer.model.state_dict())
    trained = trainer.train(trainer.model, start=start)
    trained_by_hand(trainer, by_hand, start, [0.1] * 4 + [0.05] * 2)
    assert differing(trainer.model.state_dict(), by_hand.state_dict()) == []
    assert trained.steps == 6 - start


def test_two_trainings_with_one_seed_are_the_same_and_with_another_differ() -> None:
    first, second, other = (tiny_trainer(seed=seed) for seed in (1, 1, 2))
    for trainer in (first, second, other):
        torch.rand(7)
        trainer.train(trainer.model)
    assert differing(first.model.state_dict(), second.model.state_dict()) == []
    assert "fc1.weight" in differing(first.model.state_dict(), other.model.state_dict())


def test_early_stop_is_the_step_of_least_validation_loss_and_test_is_read_there() -> None:
    # At this rate the training diverges: its best step lies in the middle.
    losses: dict[int, float] = {}
    states: dict[int, dict[str, Tensor]] = {}

    def listen(event: dict[str, Any]) -> None:
        losses[event["step"]] = event["validation_loss"]
        states[event["step"]] = snapshot(trainer.model)

    wild = partial(torch.optim.SGD, lr=1.5, momentum=0.9)
    trainer = tiny_trainer(optimizer=wild, steps=12, evaluate_every=1, listener=listen)
    trained = trainer.train(trainer.model)
    best = min(losses, key=lambda step: losses[step])
    assert 1 < best < 12
    assert (trained.early_stop_step, trained.validation_loss) == (best, losses[best])
    assert differing(trained.early_state, states[best]) == []
    assert differing(snapshot(trainer.model), states[12]) == []
    assert_measured_at(trainer, trained, states[best])


def test_the_test_split_has_no_say_in_early_stop() -> None:
    # The trap: a network chosen by the very examples that it is judged by.
    data = blobs()
    assert isinstance(data.test, TensorSplit)
    wrong = TensorSplit(data.test.inputs, (data.test.targets + 1) % 3)
    wild = partial(torch.optim.SGD, lr=1.5, momentum=0.9)
    plain, misled = (
        trainer.train(trainer.model)
        for trainer in (
            tiny_trainer(optimizer=wild, steps=12, evaluate_every=1, data=one)
            for one in (data, replace(data, test=wrong))
        )
    )
    assert (plain.early_stop_step, plain.validation_loss) == (misled.early_stop_step, misled.validation_loss)
    assert differing(plain.early_state, misled.early_state) == []
    assert plain.test.loss != misled.test.loss


def assert_measured_at(trainer: Trainer, trained: Trained, state: dict[str, Tensor]) -> None:
    model = trainer.build()
    model.load_state_dict(state)
    found = evaluate(model, trainer.data.test, device=trainer.device)
    assert (trained.test.loss, trained.test.accuracy) == (found.loss, found.accuracy)
    assert trained.test_at_end.loss != found.loss


def test_the_last_step_is_always_evaluated() -> None:
    seen: list[int] = []
    trainer = tiny_trainer(steps=5, listener=lambda event: seen.append(event["step"]))
    trainer.train(trainer.model)
    assert seen == [2, 4, 5]


class Plain(nn.Module):
    """Without BatchNorm and dropout, which see the size of a micro-batch."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x)
        return out


def test_accumulated_micro_batches_are_the_undivided_batch() -> None:
    whole, parts = (tiny_trainer(lambda: Plain().double(), data=doubles(), accumulate=n) for n in (1, 4))
    for trainer in (whole, parts):
        trainer.train(trainer.model)
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[name], tensor)


def doubles() -> Data:
    return mapped(lambda x: x.double())


def mapped(convert: Callable[[Tensor], Tensor]) -> Data:
    """The blobs as map-style datasets."""

    def dataset(split: Split) -> DatasetSplit:
        x, y = split.batch(torch.arange(len(split)))
        return DatasetSplit(TensorDataset(convert(x), y))

    data = blobs()
    splits = [dataset(split) for split in (data.train, data.validation, data.test)]
    return Data("mapped", "classification", splits[0], splits[1], splits[2], classes=3, input_shape=(8,))


def test_a_map_style_dataset_trains_like_the_tensors_in_it() -> None:
    plain, from_sets = tiny_trainer(), tiny_trainer(data=mapped(lambda x: x))
    results = [trainer.train(trainer.model) for trainer in (plain, from_sets)]
    assert differing(plain.model.state_dict(), from_sets.model.state_dict()) == []
    assert results[0].test.loss == results[1].test.loss


def test_clip_bounds_the_step() -> None:
    def moved(clip: float | None) -> float:
        trainer = tiny_trainer(Plain, steps=1, clip=clip, optimizer=partial(torch.optim.SGD, lr=1.0))
        before = snapshot(trainer.model)
        trainer.train(trainer.model)
        squares = [(tensor - before[name]).pow(2).sum() for name, tensor in trainer.model.state_dict().items()]
        return float(torch.stack(squares).sum().sqrt())

    assert moved(None) > 0.1
    assert moved(0.01) == pytest.approx(0.01, rel=1e-3)


def test_weight_decay_is_for_matrices_only() -> None:
    def still(x: Tensor, y: Tensor) -> Tensor:
        return x.sum() * 0

    trainer = tiny_trainer(Plain, steps=1, loss=still, weight_decay=0.5, optimizer=partial(torch.optim.AdamW, lr=0.1))
    before = snapshot(trainer.model)
    trainer.train(trainer.model)
    after = trainer.model.state_dict()
    torch.testing.assert_close(after["fc.weight"], before["fc.weight"] * 0.95)
    assert torch.equal(after["fc.bias"], before["fc.bias"])


def test_evaluation_leaves_the_mode_and_the_statistics_alone() -> None:
    model = Net().train()
    before = snapshot(model)
    found = evaluate(model, blobs().test, device=torch.device("cpu"), batch_size=7)
    assert model.training and differing(before, snapshot(model)) == []
    assert found.accuracy == pytest.approx(float(found.scores.mean())) and found.scores.shape == (30,)
    whole = evaluate(model, blobs().test, device=torch.device("cpu"))
    assert found.loss == pytest.approx(whole.loss, rel=1e-5)


def test_a_loss_that_is_not_finite_stops_with_advice() -> None:
    def broken(x: Tensor, y: Tensor) -> Tensor:
        return x.sum() * float("nan")

    trainer = tiny_trainer(loss=broken)
    with pytest.raises(FloatingPointError, match=r"not finite at step 2; .* Lower the learning rate"):
        trainer.train(trainer.model)


def test_an_optimizer_of_another_model_is_refused() -> None:
    other = Net()
    trainer = tiny_trainer(optimizer=lambda parameters: SGD(other.parameters()))
    with pytest.raises(ValueError, match="expected an optimizer of this model"):
        trainer.train(trainer.model)


def test_stopping_is_said_with_the_step() -> None:
    trainer = tiny_trainer()
    trainer.should_stop = lambda: True
    with pytest.raises(Stopped, match="stopped at step 1"):
        trainer.train(trainer.model)


def test_new_weights_need_a_function_that_makes_them() -> None:
    with pytest.raises(ValueError, match="pass the function instead"):
        tiny_trainer(Net()).build("reinit", 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"accumulate": 3}, "accumulate: expected a divisor of batch_size 20, got 3"),
        ({"evaluate_every": 0}, "evaluate_every: expected at least 1 step, got 0"),
        ({"batch_size": 100}, "batch_size: expected 1 to 60"),
    ],
)
def test_wrong_arguments_are_explained(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_trainer(**changes)


def test_a_start_behind_the_end_is_refused() -> None:
    trainer = tiny_trainer()
    with pytest.raises(ValueError, match=r"start: expected a step in \[0, 6\), got 6"):
        trainer.train(trainer.model, start=6)


@pytest.mark.parametrize("name", ["validation", "test"])
def test_an_empty_split_is_refused_before_training(name: str) -> None:
    data = blobs()
    empty = TensorSplit(torch.zeros(0, 8), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match=f"at least one example in the {name} split"):
        tiny_trainer(data=replace(data, **{name: empty}))


def test_an_accelerator_that_divides_losses_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "gradient_accumulation_steps", property(lambda self: 4))
    with pytest.raises(ValueError, match="pass accumulate= to Trainer instead"):
        tiny_trainer()
