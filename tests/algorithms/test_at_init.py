"""Pruning at initialisation: no dense training, the network as it was drawn, the same again after a stop."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_task import differing, tiny_trainer
from torch import Tensor

import sparseflow as sf
from sparseflow.hardware.model import dense_state, sparse_layers
from sparseflow.masks import Scores
from sparseflow.recipes import load_recipe, make_pruning
from sparseflow.results import finish
from sparseflow.runs import Run, begin, check, open_run, run_seed
from sparseflow.training.controls import train_control
from sparseflow.training.records import Records
from sparseflow.training.trainer import Stopped, Trainer

HALF: dict[str, Any] = {"density": 0.5, "floor": 1, "backend": "dense-compact"}


@pytest.mark.parametrize("criterion", ["snip", "grasp", "synflow", "magnitude", "random"])
def test_the_untrained_network_is_pruned_and_trained_once(criterion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, starts = tiny_trainer(), list[dict[str, Tensor]]()
    train = Trainer.train

    def noted(self: Trainer, model: torch.nn.Module, **options: Any) -> Any:
        starts.append(dense_state(model))
        return train(self, model, **options)

    monkeypatch.setattr(Trainer, "train", noted)
    theta_0 = dense_state(trainer.model)
    batch = next(iter(trainer.batches(1)))
    masks = sf.prune(trainer.model, 0.5, criterion=criterion, floor=1, data=[batch], loss=trainer.loss)
    ticket = sf.prune_at_init(trainer, criterion=criterion, **HALF)
    assert ticket.masks == masks and ticket.round == 1 and ticket.provenance["algorithm"] == "prune-at-init"
    expected = {n: torch.where(masks[n], t, 0.0) if n in masks else t for n, t in theta_0.items()}
    assert len(starts) == 1 and differing(starts[0], expected) == []
    for name, mask in masks.items():
        assert not bool(dense_state(trainer.model)[name][~mask].any())


def test_a_stopped_one_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole, parts = tiny_trainer(), tiny_trainer()
    ticket = sf.prune_at_init(whole, records=Records(tmp_path / "whole", first=1), **HALF)
    parts.should_stop = lambda: True
    for _ in range(2):
        with pytest.raises(Stopped):
            sf.prune_at_init(parts, records=Records(tmp_path / "parts", first=1), **HALF)
        parts = tiny_trainer()
        parts.should_stop = lambda: True
    parts.should_stop = lambda: False
    again = sf.prune_at_init(parts, records=Records(tmp_path / "parts", first=1), **HALF)
    assert again.digest == ticket.digest
    assert differing(dense_state(parts.model), dense_state(whole.model)) == []
    # Done, it only reads what is there.
    assert (
        sf.prune_at_init(tiny_trainer(), records=Records(tmp_path / "parts", first=1), **HALF).digest == ticket.digest
    )


def test_its_controls_keep_the_counts_and_move_the_mask() -> None:
    trainer = tiny_trainer()
    theta_0 = dense_state(trainer.model)
    ticket = sf.prune_at_init(trainer, **HALF)
    train_control(trainer, ticket, "shuffle", theta_0)
    found = {name: module.mask for name, module in sparse_layers(trainer.model).items()}
    assert {name: int(mask.sum()) for name, mask in found.items()} == ticket.masks.kept
    # The trap: a shuffle that never reaches the mask.
    assert all(not torch.equal(mask, ticket.masks[name]) for name, mask in found.items())


def test_a_criterion_of_the_search_sees_the_rewind_point() -> None:
    dense, ticket = sf.imp(tiny_trainer(), rounds=1, rate=0.5, criterion="movement", floor=1, backend="dense")
    trained = tiny_trainer()
    trained.train(trained.model)
    assert sf.prune(trained.model, rate=0.5, criterion="movement", start=dense.rewind, floor=1) == ticket.masks


def test_masks_that_cut_the_network_stop_the_search_before_it_trains_them() -> None:
    def corner(weights: Mapping[str, Tensor], seed: int) -> Scores:
        # Keeps the last unit of the first layer, and the column of the first unit in the second.
        return Scores({"fc1.weight": ramp(weights["fc1.weight"]), "fc2.weight": -ramp(weights["fc2.weight"])}, False)

    def ramp(weight: Tensor) -> Tensor:
        return torch.arange(weight.numel(), dtype=torch.float32).view(weight.shape)

    options: dict[str, Any] = {"criterion": corner, "rates": {"*": 0.97}, "allocation": "layerwise", "backend": "dense"}
    with pytest.raises(ValueError, match=r"the masks cut the network at 'fc2.weight'"):
        sf.prune_at_init(tiny_trainer(), floor=1, **options)
    assert sf.prune_at_init(tiny_trainer(), floor=0, **options).masks.nnz == 5


RECIPE: dict[str, Any] = {
    "name": "tiny",
    "model": {"name": "lenet_300_100", "options": {"inputs": 64}},
    "data": "digits",
    "algorithm": "prune-at-init",
    "training": {"steps": 4, "batch_size": 60, "evaluate_every": 2, "optimizer": {"name": "adam", "lr": 0.001}},
    "pruning": {"rounds": 1, "density": 0.1, "criterion": "snip", "batches": 2, "floor": 1},
    "controls": {"rounds": [1], "kinds": ["shuffle"]},
    "seeds": [1],
    "backend": "dense-compact",
}


def recipe_file(tmp_path: Path, *, algorithm: str = "prune-at-init", **pruning: object) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "algorithm": algorithm, "pruning": {**RECIPE["pruning"], **pruning}}))
    return str(path)


def test_a_recipe_runs_to_its_report(tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file(tmp_path))
    task = check(recipe)
    run = open_run(tmp_path / "run", recipe, resume=False)
    begin(run)
    events: list[dict[str, Any]] = []
    run_seed(Run(run.folder, recipe), 1, events.append)
    assert [(e["kind"], e["round"]) for e in events if e["event"] == "trained"] == [("round", 1), ("shuffle", 1)]
    result = finish(run, task, 0.0)
    assert [row["round"] for row in result["rounds"]] == [1] and result["verdict"]["round"] == 1
    assert sum(result["rounds"][0]["kept"].values()) == round(0.1 * (64 * 300 + 300 * 100 + 1000))
    assert (run.folder / "report.html").exists()


@pytest.mark.parametrize(
    ("pruning", "message"),
    [
        ({"rounds": 2}, "algorithm 'prune-at-init' prunes once"),
        ({"rewind_to": 1}, "algorithm 'prune-at-init' prunes once"),
        ({"criterion": "snap"}, "no criterion 'snap'; did you mean"),
        ({"pattern": {"name": "nm", "options": {"n": 5, "m": 4}}}, "expected 1 <= n <= m, got n=5, m=4"),
        ({"pattern": "mn"}, "no pattern 'mn'"),
        ({"importance": "l3"}, "pruning.importance"),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path: Path, pruning: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe_file(tmp_path, **pruning))


def test_what_does_not_fit_the_network_is_said_before_training(tmp_path: Path) -> None:
    fifty = {"name": "nm", "options": {"n": 2, "m": 4}}
    with pytest.raises(ValueError, match=r"keep at most 25,100 of 50,200 weights \(density 0.5\), and 40,160"):
        check(load_recipe(recipe_file(tmp_path, algorithm="imp", density=0.8, pattern=fifty)))
    with pytest.raises(ValueError, match=r"6:7 needs inputs in multiples of 7, but 'fc1.weight'"):
        check(load_recipe(recipe_file(tmp_path, pattern={"name": "nm", "options": {"n": 6, "m": 7}})))


def test_channels_of_a_recipe_are_those_of_its_network(tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file(tmp_path, pattern="channel", density=0.5))
    check(recipe)
    run = open_run(tmp_path / "run", recipe, resume=False)
    begin(run)
    run_seed(run, 1, lambda event: None)
    rows = {name: int(mask.any(1).sum()) for name, mask in run.records(1).ticket(1).masks.items()}
    assert rows["fc1.weight"] + rows["fc2.weight"] == 200 and rows["fc3.weight"] == 10


def test_a_function_of_ones_own_by_its_place(tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file(tmp_path, criterion="sparseflow.masks.criteria:random", importance="l1"))
    pruning = make_pruning(recipe.pruning)
    assert callable(pruning.criterion) and pruning.importance == "l1"
