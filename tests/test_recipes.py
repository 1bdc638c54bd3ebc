from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sparseflow import replay
from sparseflow.recipes import Recipe, available_recipes, load_recipe, make_trainer, read_recipe

SMALL: dict[str, Any] = {
    "name": "small",
    "model": {"name": "lenet_300_100", "options": {"inputs": 64}},
    "data": "digits",
    "training": {"steps": 10, "batch_size": 20, "optimizer": {"name": "sgd", "lr": 0.1}},
    "pruning": {"rounds": 2, "rate": 0.2},
}


@pytest.fixture
def small(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return str(path)


def test_the_recipes_that_come_with_sparseflow_are_sound() -> None:
    names = set(available_recipes())
    assert {"digits", "gpt", "lenet", "resnet20"} <= names
    assert {load_recipe(name).name for name in names} == names


def test_a_recipe_outlives_its_own_writing(tmp_path: Path) -> None:
    for name in available_recipes():
        recipe = load_recipe(name)
        kept = tmp_path / "recipe.yaml"
        kept.write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
        assert read_recipe(kept) == recipe


def test_settings_are_laid_over_the_recipe(small: str) -> None:
    settings = ["training.steps=7", "seeds=[3, 4]", "data.options.flat=true", "training.schedule.name=cosine"]
    recipe = load_recipe(small, settings)
    assert (recipe.training.steps, recipe.seeds) == (7, [3, 4])
    assert (recipe.data.name, recipe.data.options) == ("digits", {"flat": True})
    assert recipe.training.schedule.name == "cosine"
    assert recipe.training.batch_size == 20


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.step=3", "unknown key 'training.step'; did you mean 'steps'?"),
        ("pruning.zzz=3", "unknown key 'pruning.zzz'; known: rounds, rate, density"),
        ("prunning=3", "unknown key 'prunning'; did you mean 'pruning'?"),
        ("pruning.density=1.5", "pruning.density: .* less than or equal to 1, got 1.5"),
        ("pruning.density=0", "pruning.density: .* greater than 0, got 0"),
        ("pruning.density=0.5", "give rate .* or density .* not both"),
        ("pruning.rate=1.0", "pruning.rate: .* less than 1, got 1.0"),
        ("pruning.rate=null", "give rate .* or density"),
        ("pruning.rewind_to=10", "pruning.rewind_to: expected a step below training.steps=10, got 10"),
        ("pruning.rewind=weight", "pruning.rewind: .*'weights', 'learning_rate' or 'none', got 'weight'"),
        ("pruning.allocation=globl", "pruning.allocation: .*'global'.* got 'globl'"),
        ("controls.rounds=[3]", r"controls.rounds: expected rounds from 1 to 2, got \[3\]"),
        ("controls.kinds=[swap]", "controls.kinds.0: .*'reinit'.* got 'swap'"),
        ("seeds=[1, 1]", r"seeds: expected distinct seeds, got \[1, 1\]$"),
        ("seeds=[]", "seeds: .* at least 1 item"),
        ("training.steps=0", "training.steps: .* greater than or equal to 1, got 0"),
        ("training.steps=many", "training.steps: .* got 'many'"),
        ("training.optimizer.lr=-1", "training.optimizer.lr: .* greater than 0, got -1"),
        ("training=null", "training: .* got None"),
        ("training.steps=[1", "--set 'training.steps=.1': not YAML"),
        ("training.steps", "--set: expected key=value .* got 'training.steps'"),
        ("workers.number=2", "--set 'workers.number=2'"),
    ],
)
def test_what_is_wrong_is_said_with_its_key(small: str, setting: str, message: str) -> None:
    settings = ["workers=2", setting] if setting.startswith("workers") else [setting]
    with pytest.raises(ValueError, match=message) as caught:
        load_recipe(small, settings)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named(small: str) -> None:
    content = {key: value for key, value in SMALL.items() if key != "data"}
    Path(small).write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=r"small\.yaml: data: expected this key, got none"):
        load_recipe(small)


@pytest.mark.parametrize(("content", "message"), [("a: [", "not YAML"), ("- a", "expected a mapping"), ("", "mapping")])
def test_a_file_that_is_no_recipe_is_refused(small: str, content: str, message: str) -> None:
    Path(small).write_text(content)
    with pytest.raises(ValueError, match=f"small.yaml: .*{message}"):
        load_recipe(small)


def test_an_unknown_recipe_lists_the_known() -> None:
    with pytest.raises(ValueError, match="no recipe 'lennet': expected a YAML file or one of: acdc, digits, "):
        load_recipe("lennet")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.name=lenet", "did you mean 'lenet_300_100'"),
        ("model.options={input: 3}", "no option of lenet_300_100 'input'; did you mean 'inputs'"),
        ("data.name=digit", "no data 'digit'; did you mean 'digits'"),
        ("training.optimizer.name=adamm", "no optimizer 'adamm'; did you mean 'adam'"),
        ("training.optimizer.options={momentun: 0.9}", "training.optimizer 'sgd': .*momentun"),
        ("training.schedule=cosin", "no schedule 'cosin'; did you mean 'cosine'"),
        ("training.schedule={name: cosine, options: {warm: 3}}", "no option of cosine 'warm'; did you mean 'warmup'"),
        ("training.batch_size=9999", "batch_size: expected 1 to 1197"),
        ("training.accumulate=3", "accumulate: expected a divisor of batch_size 20, got 3"),
        ("data={name: text, options: {path: /none/at/all}}", "no file /none/at/all"),
    ],
)
def test_names_that_do_not_exist_are_explained(small: str, setting: str, message: str) -> None:
    recipe = load_recipe(small, [setting])
    with pytest.raises(ValueError, match=message):
        make_trainer(recipe, 1)


def test_a_trainer_is_what_the_recipe_says(small: str) -> None:
    settings = ["training.schedule=cosine", "training.clip=0.5", "training.weight_decay=0.1", "training.accumulate=2"]
    trainer = make_trainer(load_recipe(small, settings), seed=5)
    assert (trainer.steps, trainer.order.batch_size, trainer.seed) == (10, 20, 5)
    assert (trainer.clip, trainer.weight_decay, trainer.accumulate) == (0.5, 0.1, 2)
    # A cosine is as long as the training, unless it says otherwise.
    assert trainer.schedule(0) == 1.0 and trainer.schedule(10) == 0.0
    optimizer = trainer.make_optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert isinstance(optimizer, torch.optim.SGD) and optimizer.defaults["lr"] == 0.1


def test_the_corpus_decides_the_vocabulary(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question\n" * 20)
    small = ["model.options={context: 8, layers: 1, heads: 1, width: 8}", "training.batch_size=2"]
    recipe = load_recipe("gpt", [*small, f"data.options={{path: {text}, context: 8}}"])
    trainer = make_trainer(recipe, 1)
    assert trainer.model.get_submodule("head").out_features == trainer.data.classes == len(set(text.read_text()))


def test_a_users_own_model_is_found_by_reference(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_recipe_nets.py").write_text(
        "from torch import nn\ndef net(width: int) -> nn.Module: return nn.Linear(width, 10)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = load_recipe(small, ["model={name: 'my_recipe_nets:net', options: {width: 64}}"])
    assert isinstance(recipe, Recipe)
    assert make_trainer(recipe, 1).model.weight.shape == (10, 64)


def test_a_plan_has_the_recipes_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(replay, "plan", lambda model, masks, *rest: seen.append(masks))
    pattern = ["pruning.pattern={name: nm, options: {n: 1, m: 4}}", "pruning.density=0.25", "pruning.rate=null"]
    replay.plan_recipe(load_recipe("digits", pattern), 0.25)
    (masks,) = seen
    assert all(int(mask.view(-1, 4).sum(1).max()) == 1 for mask in masks.values())
