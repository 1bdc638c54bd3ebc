"""Configs beside recipes and launches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparseflow.doctor.accelerate_config import Asked, check_accelerate, read_accelerate, what_starts
from sparseflow.doctor.batches import check_batch
from sparseflow.doctor.deepspeed_config import check_deepspeed
from sparseflow.doctor.devices import check_devices
from sparseflow.recipes import load_recipe

CONFIGS = Path(__file__).parents[2] / "launchers" / "configs"
DDP = {"distributed_type": "MULTI_GPU", "num_processes": 8, "num_machines": 1, "mixed_precision": "bf16"}
# batch_size 60, accumulate 1, no clipping.
DIGITS = load_recipe("digits")


def write(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_the_configs_that_come_with_sparseflow_are_fine(path: Path) -> None:
    engine = "fsdp2" if path.stem == "fsdp2" else "ddp"
    assert [finding.status for finding in check_accelerate(read_accelerate(path), engine, None)] == ["ok"]


def test_what_a_config_starts(tmp_path: Path) -> None:
    config = read_accelerate(write(tmp_path, {**DDP, "num_processes": 16, "num_machines": 2}))
    assert what_starts(config) == Asked(16, 2, "gpu")
    assert what_starts(config).here == 8
    assert what_starts(read_accelerate(CONFIGS / "one_cpu.yaml")) == Asked(1, 1, "cpu")
    assert what_starts(read_accelerate(CONFIGS / "one_gpu.yaml")) == Asked(1, 1, "either")


@pytest.mark.parametrize(
    ("change", "engine", "processes", "status", "says"),
    [
        ({"distributed_type": "FSDP"}, "ddp", None, "wrong", "--engine fsdp2"),
        ({"distributed_type": "DEEPSPEED"}, "ddp", None, "wrong", "sparseflow_launchers.dense"),
        ({"distributed_type": "MULTI_XPU"}, "ddp", None, "warning", "tested with NO and MULTI_GPU"),
        ({"distributed_type": "NO"}, "ddp", None, "wrong", "would start one process"),
        ({"distributed_type": "MULTI_CPU"}, "ddp", None, "wrong", "torchrun --nproc_per_node 8"),
        ({"distributed_type": "NO", "use_cpu": True}, "ddp", None, "wrong", "would start one process"),
        ({"num_processes": -1}, "ddp", None, "wrong", "num_processes: expected how many"),
        ({}, "ddp", 4, "wrong", "num_processes: expected 4, as --processes or this launch says, got 8"),
        ({"num_machines": 3, "main_process_ip": "node-a"}, "ddp", None, "wrong", "a multiple of num_machines: 3"),
        ({"num_machines": 2}, "ddp", None, "wrong", "main_process_ip"),
        ({"mixed_precision": "fp8"}, "ddp", None, "wrong", "expected no, bf16 or fp16, got fp8"),
        ({"mixed_precision": "fp16"}, "fsdp2", None, "wrong", "scales its own loss"),
        (
            {"mixed_precision": "fp16", "distributed_type": "NO", "num_processes": 1, "use_cpu": True},
            "ddp",
            None,
            "wrong",
            "needs a GPU",
        ),
        ({"num_processes": 1}, "fsdp2", None, "warning", "nothing to shard"),
        ({"dynamo_config": {"dynamo_backend": "INDUCTOR"}}, "ddp", None, "warning", "torch.compile"),
    ],
)
def test_a_config_that_does_not_fit(
    tmp_path: Path, change: dict[str, Any], engine: str, processes: int | None, status: str, says: str
) -> None:
    [found] = check_accelerate(read_accelerate(write(tmp_path, {**DDP, **change})), engine, processes)
    assert found.status == status and says in found.text


@pytest.mark.parametrize("precision", ["no", False, None, "fp16", "bf16"])
def test_precisions_that_fit(tmp_path: Path, precision: object) -> None:
    config = read_accelerate(write(tmp_path, {**DDP, "mixed_precision": precision}))
    assert [finding.status for finding in check_accelerate(config, "ddp", 8)] == ["ok"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("distributed_type: MULTI_GPU\nnum_proceses: 8\n", "num_proceses"),
        ("num_processes: 8\n", "distributed_type"),
        ("a: [", "cannot read it"),
        ("- 1\n", "cannot read it"),
        ("distributed_type: MULTI_GPUS\n", "MULTI_GPUS"),
    ],
)
def test_a_config_that_accelerate_refuses(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=says):
        read_accelerate(path)


def test_a_config_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        read_accelerate(tmp_path / "none.yaml")


def test_a_batch_that_comes_out_even() -> None:
    found = check_batch(DIGITS.training, 4)
    assert (found.status, found.text) == ("ok", "60 = 4 processes × accumulate=1 × a micro-batch of 15")


def test_a_batch_that_does_not() -> None:
    found = check_batch(load_recipe("digits", ["training.accumulate=2"]).training, 4)
    assert found.status == "wrong"
    assert "expected a multiple of 8 = 4 processes × accumulate=2, got 60" in found.text
    assert "training.batch_size=56 or --set training.batch_size=64" in found.text
    # There is no batch of none.
    assert "batch_size=0" not in check_batch(DIGITS.training, 64).text


AUTO = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": 2,
    "gradient_clipping": "auto",
    "zero_optimization": {"stage": 2},
    "bf16": {"enabled": True, "check_grad_overflow": False},
}


def statuses(path: Path, world: int = 3) -> dict[str, str]:
    return {finding.name: finding.status for finding in check_deepspeed(path, DIGITS, world)}


def test_a_deepspeed_config_that_fits(tmp_path: Path) -> None:
    found = check_deepspeed(write(tmp_path, AUTO), DIGITS, 3)
    assert found[0].status == "ok"
    assert "ZeRO-2, bf16; batch 60 = 3 processes × 2 × a micro-batch of 10" in found[0].text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"train_batch_size": 64}, "train_batch_size"),
        ({"train_micro_batch_size_per_gpu": 7}, "is not processes"),
        ({"gradient_clipping": 1.0}, "gradient_clipping"),
        ({"optimizer": {"type": "AdamW"}}, "optimizer"),
        ({"fp16": {"enabled": True}}, "fp16"),
        ({"zero_optimization": {"stage": 4}}, "stage"),
    ],
)
def test_a_deepspeed_config_that_does_not(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    [found] = check_deepspeed(write(tmp_path, {**AUTO, **change}), DIGITS, 3)
    assert found.status == "wrong" and says in found.text


def test_bf16_is_explicit_about_overflow(tmp_path: Path) -> None:
    found = check_deepspeed(write(tmp_path, {**AUTO, "bf16": {"enabled": True}}), DIGITS, 3)
    assert [finding.status for finding in found[:2]] == ["ok", "warning"]


def test_a_deepspeed_config_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    assert statuses(tmp_path / "config.json")["config"] == "wrong"
    assert statuses(tmp_path / "none.json")["config"] == "wrong"


@pytest.mark.parametrize(
    ("names", "here", "device", "status"),
    [
        ([], 2, "either", "ok"),
        ([], 2, "gpu", "warning"),
        (["H100"], 2, "cpu", "ok"),
        (["H100"], 2, "either", "wrong"),
        (["H100"] * 8, 8, "gpu", "ok"),
        (["H100"] * 8, 2, "gpu", "ok"),
    ],
)
def test_gpus(names: list[str], here: int, device: Any, status: str) -> None:
    found = check_devices(names, here, device)
    assert found.status == status
    assert ("6 of them unused" in found.text) == (len(names) == 8 and here == 2)
