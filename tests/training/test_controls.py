"""Controls differ from the ticket in what they take away, and in nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_task import Net, differing, tiny_trainer
from torch import Tensor

import sparseflow as sf
from sparseflow.hardware.model import dense_state
from sparseflow.training.controls import Kind, train_control
from sparseflow.training.records import Records
from sparseflow.training.trainer import Stopped, Trainer

STEPS = {"reinit": 6, "shuffle": 4, "random": 6}


class Search:
    """One round rewound to step 2, and a trainer that notes the state each later training starts from."""

    def __init__(self, **changes: Any) -> None:
        self.start: dict[str, Tensor] = {}
        self.trainer = tiny_trainer(**changes)
        arguments: dict[str, Any] = {"rounds": 1, "rate": 0.5, "floor": 1, "rewind_to": 2, "backend": "dense-compact"}
        self.dense, self.ticket = sf.imp(self.trainer, **arguments)
        self.theta_0 = dense_state(self.trainer.build())
        train = Trainer.train

        def noted(model: torch.nn.Module, **options: Any) -> Any:
            self.start = dense_state(model)
            return train(self.trainer, model, **options)

        self.trainer.train = noted  # type: ignore[method-assign]

    def control(self, kind: Kind, **options: Any) -> sf.Masks:
        """Trains the control; returns its masks."""
        trained = train_control(self.trainer, self.ticket, kind, self.dense.rewind, **options)
        assert trained.steps == STEPS[kind]
        return sf.Masks({name: self.start[name] != 0 for name in self.ticket.masks})


@pytest.fixture
def search() -> Search:
    return Search()


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def test_reinit_keeps_the_mask_and_draws_new_weights(search: Search) -> None:
    masks = search.control("reinit")
    assert masks.digest == search.ticket.masks.digest
    mask = masks["fc1.weight"]
    ours, theirs = search.start["fc1.weight"][mask], search.theta_0["fc1.weight"][mask]
    assert not bool((ours == theirs).any())
    # 64 pairs or so: their correlation has a standard deviation of about 0.13.
    assert abs(correlation(ours, theirs)) < 0.4
    assert int(search.start["norm.num_batches_tracked"]) == 0


def test_shuffle_moves_the_mask_and_keeps_counts_and_rewind_point(search: Search) -> None:
    masks = search.control("shuffle")
    assert masks.kept == search.ticket.masks.kept
    for name, mask in masks.items():
        assert not torch.equal(mask, search.ticket.masks[name])
        kept = search.dense.rewind[name]
        assert torch.equal(search.start[name], torch.where(mask, kept, 0.0))
    assert int(search.start["norm.num_batches_tracked"]) == 2


def test_random_moves_the_mask_and_draws_new_weights(search: Search) -> None:
    masks = search.control("random")
    assert masks.kept == search.ticket.masks.kept
    assert masks.digest != search.ticket.masks.digest
    both = masks["fc1.weight"] & search.ticket.masks["fc1.weight"]
    assert not bool((search.start["fc1.weight"] == search.theta_0["fc1.weight"])[both].any())


def test_controls_draw_from_streams_of_their_own(search: Search) -> None:
    states = {}
    masks = {}
    for kind in STEPS:
        masks[kind] = search.control(kind)  # type: ignore[arg-type]
        states[kind] = search.start
    assert masks["shuffle"].digest != masks["random"].digest
    assert "fc1.bias" in differing(states["reinit"], states["random"])
    again = search.control("random")
    assert again.digest == masks["random"].digest and differing(search.start, states["random"]) == []


def test_a_control_runs_on_the_tickets_plan(search: Search) -> None:
    search.control("shuffle")
    assert {type(module).__name__ for module in search.trainer.model.children()} == {"SparseLinear", "BatchNorm1d"}


def test_a_stopped_control_goes_on(tmp_path: Path) -> None:
    whole, parts = Search(), Search()
    whole.control("shuffle", records=Records(tmp_path / "whole"))
    parts.trainer.should_stop = lambda: True
    for _ in range(3):
        with pytest.raises(Stopped):
            parts.control("shuffle", records=Records(tmp_path / "parts"))
    parts.control("shuffle", records=Records(tmp_path / "parts"))
    assert differing(dense_state(whole.trainer.model), dense_state(parts.trainer.model)) == []
    first, second = (Records(tmp_path / name).metrics(1, "shuffle") for name in ("whole", "parts"))
    assert first is not None and second is not None
    times = ("seconds", "step_seconds")
    assert {key: first[key] for key in first if key not in times} == {
        key: second[key] for key in second if key not in times
    }


def test_an_unknown_control_is_refused(search: Search) -> None:
    with pytest.raises(ValueError, match="no control 'swap'; available: reinit, shuffle, random"):
        search.control("swap")  # type: ignore[arg-type]


def test_new_weights_need_the_function_that_makes_them() -> None:
    trainer = tiny_trainer(Net())
    dense, ticket = sf.imp(trainer, rounds=1, rate=0.5, floor=1, backend="dense")
    with pytest.raises(ValueError, match="new weights need a function that makes the model"):
        train_control(trainer, ticket, "reinit", dense.rewind)


def test_shuffle_needs_tickets_with_rewound_weights() -> None:
    trainer = tiny_trainer()
    dense, ticket = sf.imp(trainer, rounds=1, rate=0.5, floor=1, backend="dense", rewind="learning_rate")
    with pytest.raises(ValueError, match="the shuffle control needs rewind='weights'"):
        train_control(trainer, ticket, "shuffle", dense.rewind)


def test_a_control_between_rounds_leaves_the_search_alone() -> None:
    digests: dict[bool, list[str]] = {}
    for with_control in (False, True):
        trainer, found = tiny_trainer(), list[sf.Ticket]()
        for ticket in sf.imp(trainer, rounds=2, rate=0.5, floor=1, backend="dense"):
            found.append(ticket)
            if with_control and ticket.round == 1:
                train_control(trainer, ticket, "reinit", found[0].rewind)
        digests[with_control] = [ticket.digest for ticket in found]
    assert digests[True] == digests[False]
