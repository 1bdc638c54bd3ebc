"""Strong tickets on a model: no weight moves, what is measured is what is kept, and what was stopped goes on."""

import copy
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from leavings import left_in
from tiny_task import Net, differing, tiny_trainer
from torch import Tensor, nn

import sparseflow as sf
from sparseflow.data import digits
from sparseflow.hardware.model import dense_state, load_dense_state
from sparseflow.masks.supermasks import EdgePopup, Supermask, Supermasks
from sparseflow.recipes import load_recipe
from sparseflow.results import finish
from sparseflow.runs import Run, begin, check, open_run, run_seed
from sparseflow.training.evaluation import evaluate
from sparseflow.training.proof import ProofError
from sparseflow.training.records import Records
from sparseflow.training.strong_ticket import ScoredNetwork
from sparseflow.training.trainer import Stopped, Trainer

METHODS: list[Supermasks] = [EdgePopup(0.5), EdgePopup(0.3, "global", "built"), Supermask(), Supermask(rescale=False)]


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("build", [Net, convolutional])
def test_what_is_measured_is_what_is_kept(method: Supermasks, build: Any) -> None:
    trainer = tiny_trainer(build)
    ticket = sf.strong_ticket(trainer, method)
    model = build()
    load_dense_state(model, dict(ticket.rewind))
    found = evaluate(model, trainer.data.test, device=trainer.device)
    assert found.loss == ticket.provenance["metrics"]["test_loss"]  # type: ignore[index,call-overload]
    for name, mask in ticket.masks.items():
        assert not ticket.rewind[name][~mask].any() and bool(ticket.rewind[name][mask].all())
    assert differing(dense_state(trainer.model), dict(ticket.rewind)) == []


@pytest.mark.parametrize("method", METHODS)
def test_no_weight_moves_and_scores_do(method: Supermasks) -> None:
    # Weight decay, which would shrink what it was given, and momentum.
    trainer = tiny_trainer(weight_decay=0.1)
    network = ScoredNetwork(trainer.model, method, seed=1)
    before = copy.deepcopy(network)
    step = trainer.stepper(network)
    for number in range(6):
        step(number)
    assert differing(dict(before.body.named_parameters()), dict(network.body.named_parameters())) == []
    assert differing(before.named_scores, network.named_scores) == list(before.named_scores)


def test_a_weight_that_moves_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    train = Trainer.train

    def moving(self: Trainer, model: ScoredNetwork, **options: Any) -> Any:
        trained = train(self, model, **options)
        with torch.no_grad():
            model.body.get_parameter("fc1.weight")[0, 0] += 1
        return trained

    monkeypatch.setattr(Trainer, "train", moving)
    with pytest.raises(ProofError, match=r"fc1\.weight"):
        sf.strong_ticket(tiny_trainer(), EdgePopup(0.5))


@pytest.mark.parametrize("optimizer", [partial(torch.optim.SGD, lr=1.0, momentum=0.9), torch.optim.Adam])
@pytest.mark.parametrize("method", [EdgePopup(0.5), Supermask()])
def test_stopped_at_every_step(tmp_path: Path, method: Supermasks, optimizer: Any) -> None:
    whole = sf.strong_ticket(tiny_trainer(optimizer=optimizer), method, records=Records(tmp_path / "whole", first=1))
    stops = 0
    while True:
        trainer = tiny_trainer(optimizer=optimizer)
        trainer.should_stop = lambda: True
        try:
            parts = sf.strong_ticket(trainer, method, records=Records(tmp_path / "parts", first=1))
            break
        except Stopped:
            stops += 1
    assert stops == 5
    assert parts.digest == whole.digest
    assert left_in(tmp_path / "parts") == left_in(tmp_path / "whole")
    # Done, it only reads what is there.
    again = sf.strong_ticket(tiny_trainer(), method, records=Records(tmp_path / "parts", first=1))
    assert again.digest == whole.digest


def accuracy(method: Supermasks, rate: float, seed: int) -> float:
    def build() -> nn.Module:
        hidden = nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU()
        return nn.Sequential(*hidden, nn.Linear(100, 10))

    optimizer = partial(torch.optim.SGD, lr=rate, momentum=0.9)
    cosine = sf.schedules.cosine(120)
    trainer = Trainer(
        build, digits(), optimizer=optimizer, steps=120, batch_size=64, schedule=cosine, seed=seed, evaluate_every=60
    )
    sf.strong_ticket(trainer, method)
    assert trainer.last is not None
    return trainer.last.test.accuracy


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    ("method", "rate"), [(EdgePopup(0.5), 0.1), (EdgePopup(0.5, "global"), 0.1), (Supermask(), 20.0)]
)
def test_weights_that_were_never_trained_classify(method: Supermasks, rate: float, seed: int) -> None:
    # Ten classes.
    assert accuracy(method, rate, seed) >= 0.75


class Signless(EdgePopup):
    """The trap: without the factor sign(s) all counts are right, and nothing is learned."""

    def training_weights(self, frozen: Mapping[str, Tensor], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        masks = self.masks(scores)
        return {name: frozen[name] * (masks[name] + score - score.detach()) for name, score in scores.items()}


def test_they_do_not_by_the_wrong_gradient() -> None:
    assert accuracy(Signless(0.5), 0.1, 1) <= 0.3


def test_only_what_the_filter_names_is_scored() -> None:
    ticket = sf.strong_ticket(tiny_trainer(), EdgePopup(0.5), param_filter="fc1*")
    assert list(ticket.masks) == ["fc1.weight"]


def test_wrong_starts() -> None:
    with pytest.raises(ValueError, match="Records\\(folder, first=1\\)"):
        sf.strong_ticket(tiny_trainer(), EdgePopup(0.5), records=Records(None))
    trainer = tiny_trainer()
    sf.sparsify(trainer.model, sf.prune(trainer.model, 0.5), backend="dense")
    with pytest.raises(ValueError, match="expected a dense model"):
        sf.strong_ticket(trainer, EdgePopup(0.5))


RECIPE: dict[str, Any] = {
    "name": "tiny",
    "model": {"name": "lenet_300_100", "options": {"inputs": 64}},
    "data": "digits",
    "training": {"steps": 4, "batch_size": 60, "evaluate_every": 2, "optimizer": {"name": "sgd", "lr": 0.1}},
}


def recipe_file(folder: Path, **changes: Any) -> str:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **changes}))
    return str(path)


@pytest.mark.parametrize("algorithm", [{"name": "edge-popup", "options": {"density": 0.25}}, {"name": "supermask"}])
def test_a_recipe_runs_to_its_report(tmp_path: Path, algorithm: dict[str, Any]) -> None:
    recipe = load_recipe(recipe_file(tmp_path, algorithm=algorithm))
    task = check(recipe)
    run = open_run(tmp_path / "run", recipe, resume=False)
    begin(run)
    run_seed(Run(run.folder, recipe), 1, lambda event: None)
    result = finish(run, task, 0.0)
    assert [row["round"] for row in result["rounds"]] == [1]
    ticket = sf.load(run.folder / "ticket.safetensors")
    assert isinstance(ticket, sf.Ticket) and ticket.masks.kept == result["rounds"][0]["kept"]
    weights = sf.load(run.folder / "model.safetensors")
    assert isinstance(weights, sf.Weights) and differing(dict(weights.state), dict(ticket.rewind)) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": {"name": "edge-popup"}}, "edge-popup needs the options density"),
        ({"algorithm": {"name": "edge-popup", "options": {"density": 2}}}, "EdgePopup: expected a density in"),
        ({"algorithm": "supermask", "controls": {"rounds": [1]}}, "algorithm 'supermask' trains no weights that a"),
        ({"algorithm": "supermask", "pruning": {"rounds": 2}}, "algorithm 'supermask' prunes once"),
        ({"algorithm": "supermask", "pruning": {"rounds": 1, "rate": 0.5}}, "'supermask' prunes by its own options"),
        ({"algorithm": "edge-pop"}, "no algorithm 'edge-pop'; did you mean 'edge-popup'"),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe_file(tmp_path, **changes))
