"""Methods whose parameters are not the weights, on two processes: they train what one does that accumulates."""

from pathlib import Path

import pytest
from launching import run

from sparseflow.files import Weights, load
from sparseflow.runs import load_run

SHORT = ["training.steps=20", "training.evaluate_every=10", "pruning={rounds: 1}"]
METHODS = {
    "edge-popup": [
        "algorithm={name: edge-popup, options: {density: 0.5}}",
        "training.optimizer={name: sgd, lr: 0.1, options: {momentum: 0.9}}",
    ],
    # Every micro-batch draws masks of its own.
    "supermask": ["algorithm=supermask", "training.optimizer={name: sgd, lr: 20.0, options: {momentum: 0.9}}"],
    # Split anew at steps 4, 8 and 12.
    "sign-in": [
        "algorithm={name: static, options: {density: 0.3}}",
        "training.optimizer={name: sign-in, lr: 0.1, options: {momentum: 0.9, every: 4, until: 12}}",
    ],
}


def ticket(folder: Path, method: str, world: int) -> tuple[str, list[bytes]]:
    """The digest of the last ticket, and the trained weights."""
    settings = [*SHORT, *METHODS[method], f"training.accumulate={2 // world}"]
    arguments = [word for setting in settings for word in ("--set", setting)]
    launched = run(folder, "--out", "run", *arguments, world=world)
    assert launched.statuses() == [0] * world, launched.log(0)
    found = load(folder / "run" / "model.safetensors")
    assert isinstance(found, Weights)
    weights = [tensor.numpy().tobytes() for _, tensor in sorted(found.state.items())]
    return load_run(folder / "run").records(1).ticket(1).digest, weights


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_train_what_one_accumulates(tmp_path: Path, method: str) -> None:
    one, two = (ticket(tmp_path / str(world), method, world) for world in (1, 2))
    assert two == one
