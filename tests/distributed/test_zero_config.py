"""A DeepSpeed configuration beside a recipe: "auto" is what the recipe says, and nothing may contradict it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparseflow.recipes import TrainingSpec
from sparseflow.zero_config import Cut, describe, read_config, settle

CONFIGS = Path(__file__).parents[2] / "launchers" / "configs"


def spec(**changes: Any) -> TrainingSpec:
    """32 examples a batch, clipped at 1."""
    given: dict[str, Any] = {"steps": 10, "batch_size": 32, "optimizer": {"name": "adam", "lr": 0.1}, "clip": 1.0}
    return TrainingSpec.model_validate({**given, **changes})


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("ds_zero*.json")), ids=lambda path: path.stem)
def test_ours_leave_the_batch_to_the_recipe(path: Path) -> None:
    config = read_config(path)
    settled, cut = settle(config, spec(accumulate=2), 4)
    assert cut == Cut(micro=4, accumulate=2, world=4)
    assert settled["train_batch_size"] == 32 and settled["train_micro_batch_size_per_gpu"] == 4
    assert settled["gradient_accumulation_steps"] == 2 and settled["gradient_clipping"] == 1.0
    stage, dtype = path.stem[7], "bf16" if path.stem.endswith("bf16") else "fp32"
    assert describe(config) == f"ZeRO-{stage}, {dtype}"
    # DeepSpeed passes over a step in silence where it is not told to look.
    assert dtype == "fp32" or config["bf16"]["check_grad_overflow"] is True


def test_without_clipping_there_is_none() -> None:
    assert settle({}, spec(clip=None), 1)[0]["gradient_clipping"] == 0.0


@pytest.mark.parametrize(
    ("config", "cut"),
    [
        ({"gradient_accumulation_steps": 8}, Cut(2, 8, 2)),
        ({"train_micro_batch_size_per_gpu": 2}, Cut(2, 8, 2)),
        ({"train_batch_size": 32}, Cut(16, 1, 2)),
        ({"train_micro_batch_size_per_gpu": 16, "gradient_accumulation_steps": 1}, Cut(16, 1, 2)),
    ],
)
def test_numbers_cut_the_batch(config: dict[str, Any], cut: Cut) -> None:
    assert settle(config, spec(), 2)[1] == cut


@pytest.mark.parametrize(
    ("config", "world", "told"),
    [
        ({"train_batch_size": 64}, 2, 'train_batch_size: expected "auto" or training.batch_size of the recipe, 32'),
        ({"train_micro_batch_size_per_gpu": 5}, 2, "batch_size 32 is not processes .* = 2 × 1 × 5"),
        ({"gradient_accumulation_steps": 3}, 2, "batch_size 32 is not processes .* = 2 × 3 × 5"),
        ({}, 3, "batch_size 32 is not processes .* = 3 × 1 × 10; start another number of processes"),
        ({}, 64, "batch_size 32 is not processes"),
        ({"train_micro_batch_size_per_gpu": 0}, 2, 'expected "auto" or a number of at least 1, got 0'),
        ({"train_batch_size": "many"}, 2, "expected \"auto\" or a number of at least 1, got 'many'"),
        ({"gradient_clipping": 0.5}, 2, 'expected "auto" or training.clip of the recipe, 1.0, got 0.5'),
        ({"optimizer": {"type": "AdamW"}}, 2, "optimizer: not with a recipe: the recipe names the optimizer"),
        ({"scheduler": {"type": "WarmupLR"}}, 2, "scheduler: not with a recipe"),
        ({"fp16": {"enabled": True}}, 2, "fp16: .*use bf16"),
        ({"zero_optimization": {"stage": 4}}, 2, "stage: expected 0 to 3, got 4"),
        ({"zero_optimization": {"stage": "auto"}}, 2, "stage: expected 0 to 3, got 'auto'"),
        ({"zero_optimization": 2}, 2, "zero_optimization: expected a JSON object, got 2"),
        ({"zero_optimization": {"stage": 2, "round_robin_gradients": True}}, 2, "round_robin_gradients: .*set it to f"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, 2, 'offload_param: .*got "nvme"'),
    ],
)
def test_what_contradicts_the_recipe(config: dict[str, Any], world: int, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        settle(config, spec(), world)


def test_what_is_switched_off_may_be_there() -> None:
    off = {"fp16": {"enabled": False}, "zero_optimization": {"stage": 1, "round_robin_gradients": False}}
    assert settle(off, spec(), 2)[0]["fp16"] == {"enabled": False}


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str) -> None:
    (tmp_path / "ds.json").write_text(text)
    with pytest.raises(ValueError, match=r"--deepspeed .*ds.json: expected a"):
        read_config(tmp_path / "ds.json")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No such file"):
        read_config(tmp_path / "ds.json")


def test_settling_keeps_what_it_does_not_know() -> None:
    config = json.loads('{"zero_optimization": {"stage": 2, "overlap_comm": true}, "wall_clock_breakdown": true}')
    settled, _ = settle(config, spec(), 2)
    assert settled["zero_optimization"] == config["zero_optimization"] and settled["wall_clock_breakdown"] is True
