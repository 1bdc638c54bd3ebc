"""Distillation into a ticket: the loss, its limits, and trainings under it."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_task import blobs, tiny_trainer
from torch import Tensor, nn

import sparseflow as sf
from sparseflow.training.distillation import soft_cross_entropy


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss, of)[0]


def test_the_loss_of_literal_logits() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[4.0, 0.0]])
    # softmax(teacher / 4) = (e, 1) / (e + 1); KL to (1/2, 1/2) is log 2 minus its entropy.
    p = torch.tensor([torch.e, 1.0]) / (torch.e + 1)
    expected = 16 * (torch.tensor(2.0).log() + (p * p.log()).sum())
    torch.testing.assert_close(soft_cross_entropy(student, teacher, 4.0), expected)
    target = torch.cat([torch.tensor([[1.0]]), teacher], 1)
    found = sf.Distillation(4.0, 0.9)(student, target)
    torch.testing.assert_close(found, 0.9 * expected + 0.1 * torch.tensor(2.0).log())


def test_alpha_zero_is_cross_entropy_to_the_bit() -> None:
    output, classes = drawn(50, 7, seed=1).requires_grad_(), torch.arange(50) % 7
    target = torch.cat([classes.float().unsqueeze(1), drawn(50, 7, seed=2)], 1)
    ours, theirs = sf.Distillation(4.0, 0.0)(output, target), F.cross_entropy(output, classes)
    assert torch.equal(ours, theirs)
    assert torch.equal(gradient(ours, output), gradient(theirs, output))


@pytest.mark.parametrize("temperature", [2.0, 4.0, 8.0])
def test_the_gradient_keeps_its_size_as_the_temperature_grows(temperature: float) -> None:
    # Logits of a network that is not yet sure: sizes of a tenth.
    student, teacher = 0.1 * drawn(100, 10, seed=1), 0.1 * drawn(100, 10, seed=2)
    student.requires_grad_()
    sizes = [gradient(soft_cross_entropy(student, teacher, t), student).norm() for t in (1.0, temperature)]
    assert float(sizes[1] / sizes[0]) == pytest.approx(1, abs=0.05)
    # The trap: without T² it shrinks by T².
    without = gradient(soft_cross_entropy(student, teacher, temperature) / temperature**2, student).norm()
    assert float(without / sizes[0]) != pytest.approx(1, abs=0.05)


def test_batches_carry_the_logits_of_the_teacher_in_eval_mode() -> None:
    data = blobs()
    teacher = nn.Sequential(nn.Linear(8, 3), nn.Dropout(0.5))
    taught = sf.distilled(data, teacher, batch_size=7)
    x, y = taught.train.batch(torch.tensor([5, 3]))
    plain_x, plain_y = data.train.batch(torch.tensor([5, 3]))
    assert torch.equal(x, plain_x) and torch.equal(y[:, 0].long(), plain_y)
    torch.testing.assert_close(y[:, 1:], teacher[0](plain_x).detach())
    assert taught.validation is data.validation and teacher.training


def test_the_arms_of_the_experiment_have_equal_steps_and_data() -> None:
    data = blobs()
    teacher = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    tickets = list(sf.imp(tiny_trainer(), rounds=1, rate=0.5, backend="dense"))
    plain, taught = tiny_trainer(), tiny_trainer(data=sf.distilled(data, teacher), loss=sf.Distillation())
    rewind = {name: tensor.clone() for name, tensor in tickets[0].rewind.items()}
    arms = {
        "ticket": sf.train_ticket(plain, tickets[1]),
        "distilled": sf.train_ticket(taught, tickets[1]),
        "distilled reinit": sf.train_control(taught, tickets[1], "reinit", rewind),
        "dense": sf.train_ticket(plain, tickets[0]),
    }
    assert {arm.steps for arm in arms.values()} == {6}
    assert len({arm.data_order for arm in arms.values()}) == 1
    # The ticket that is trained anew is what the search trained; a teacher makes a difference.
    metrics = tickets[1].provenance["metrics"]
    assert isinstance(metrics, dict)
    assert arms["ticket"].test_at_end.loss == metrics["final_test_loss"]
    assert arms["distilled"].test_at_end.loss != arms["ticket"].test_at_end.loss


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"distillation: .* got temperature=0, alpha=0.9"):
        sf.Distillation(0)
    with pytest.raises(ValueError, match="distillation: expected data of the task classification, got language"):
        sf.distilled(replace(blobs(), task="language"), nn.Linear(8, 3))
    with pytest.raises(ValueError, match="a teacher and a student of the same classes, got 4 and 3"):
        sf.Distillation()(torch.zeros(2, 3), torch.zeros(2, 5))
