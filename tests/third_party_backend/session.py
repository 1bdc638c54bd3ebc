"""What a user does once the package is installed; prints what came of it as JSON."""

import contextlib
import io
import json
import sys

import torch

import sparseflow as sf
from sparseflow import cli


def main() -> None:
    """Checks the backend, trains with it beside `dense`, and lets a plan weigh it."""
    torch.set_num_threads(1)
    backend = sf.backends.get("torch-coo")
    sf.testing.check_backend(backend)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 40, generator=generator)
    target = x[:, :3].abs()
    found = {
        "listed": listed(),
        "file": sys.modules[type(backend).__module__].__file__,
        "losses": {name: losses(name, x, target) for name in ("dense", "torch-coo")},
        "plan": planned(x),
    }
    print(json.dumps(found))


def listed() -> object:
    """What `sparseflow backends --json` says."""
    printed = io.StringIO()
    sys.argv = ["sparseflow", "backends", "--json"]
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        cli.main()
    return json.loads(printed.getvalue())


def network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(40, 24), torch.nn.ReLU(), torch.nn.Linear(24, 3))


def losses(backend: str, x: torch.Tensor, target: torch.Tensor) -> list[float]:
    """The loss of each of 20 steps with AdamW at a tenth of the weights."""
    model = network()
    sf.sparsify(model, sf.prune(model, density=0.1), backend=backend)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    seen = []
    for _ in range(20):
        loss = torch.nn.functional.mse_loss(model(x), target)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        seen.append(loss.item())
    return seen


def planned(x: torch.Tensor) -> dict[str, dict[str, float | None]]:
    """Layer → candidate → its measured seconds, of a plan that chooses by itself and is then trained for a step."""
    model = network()
    masks = sf.prune(model, density=0.1)
    plan = sf.plan(model, masks, x)
    torch.autograd.backward(sf.sparsify(model, masks, plan=plan)(x).sum())
    return {
        row.name: {one.backend: None if one.cost is None else one.cost.seconds for one in row.candidates}
        for row in plan.rows
    }


if __name__ == "__main__":
    main()
