"""A ticket from DeepSpeed's checkpoints on the disk, in one process without a GPU:

    python -m sparseflow_launchers.extract DIR/step-003000 --rate 0.3 --rewind DIR/step-000200 --out ticket.safetensors

The masks are those that the live shards give, to the bit, however many ranks have written them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import torch
import typer
from torch import Tensor

from sparseflow.files import Ticket, load, save
from sparseflow.masks.allocation import Allocation
from sparseflow.masks.masks import Masks
from sparseflow.masks.sharded import assemble, prune_slices
from sparseflow.masks.slices import cut
from sparseflow_launchers.zero_files import ZeroFiles

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def extract_masks(
    files: ZeroFiles,
    *,
    density: float | None = None,
    rate: float | None = None,
    filters: list[str] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    allocation: Allocation = "global",
    floor: float | None = None,
) -> Masks:
    """The masks of the weights to keep, by magnitude, as `prune_tensors` gives them for the whole fp32 weights.

    filters: name globs of the weights to prune; by default those that the run which wrote the checkpoint called
    prunable. masks: what is kept so far, of the same weights. Memory: up to two and a half bytes a weight, for masks;
    the weights are read from the files as often as a threshold takes passes.
    """
    shapes = _prunable(files, filters)
    slices = files.slices(shapes)
    kept = prune_slices(
        slices,
        shapes,
        masks=None if masks is None else cut(masks, slices),
        density=density,
        rate=rate,
        allocation=allocation,
        floor=floor,
    )
    return assemble(kept, shapes)


def extract_ticket(files: ZeroFiles, rewind: ZeroFiles, masks: Masks, provenance: Mapping[str, object]) -> Ticket:
    """The ticket with these masks whose weights are those of `rewind`; ValueError where that is another network.

    Its tensors are read anew each time that they are asked for, so that saving it takes memory for what is stored
    and one tensor, not for the dense weights.
    """
    if files.shapes != rewind.shapes:
        differing = sorted({name for name, _ in files.shapes.items() ^ rewind.shapes.items()})
        raise ValueError(
            f"{rewind.folder} holds another network than {files.folder}: {', '.join(differing[:5])} differ; give a "
            "checkpoint of the same training"
        )
    about: dict[str, object] = {"algorithm": "imp", "step": files.about.get("step"), **provenance}
    about["rewind_to"] = rewind.about.get("step")
    return Ticket(masks, _Masked(rewind.state(), masks), None, about)


@app.command()
def extract(
    checkpoint: Annotated[Path, typer.Argument(help="The trained checkpoint of one step, whose weights are pruned.")],
    out: Annotated[Path, typer.Option(help="The ticket, safetensors.")],
    density: Annotated[float | None, typer.Option(help="The fraction of prunable weights to keep.")] = None,
    rate: Annotated[float | None, typer.Option(help="The fraction of the kept weights to prune.")] = None,
    rewind: Annotated[Path | None, typer.Option(help="The checkpoint to rewind to; by default the same one.")] = None,
    filters: Annotated[list[str] | None, typer.Option("--filter", help="Name glob of weights to prune.")] = None,
    masks: Annotated[Path | None, typer.Option(help="A ticket: what it pruned stays pruned.")] = None,
    allocation: Annotated[str, typer.Option(help="global, uniform or erk.")] = "global",
    floor: Annotated[float | None, typer.Option(help="The least density of each layer.")] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Read what no run of sparseflow committed.")] = False,
) -> None:
    """Prune DeepSpeed's checkpoint on the disk, and write the ticket."""
    torch.set_num_threads(1)
    files = ZeroFiles(checkpoint, trusted=trust)
    before = None if masks is None else _ticket(masks)
    kept = extract_masks(
        files,
        density=density,
        rate=rate,
        filters=filters,
        masks=None if before is None else before.masks,
        allocation=_allocation(allocation),
        floor=floor,
    )
    number = 1 if before is None else before.round + 1
    source = files if rewind is None else ZeroFiles(rewind, trusted=trust)
    ticket = extract_ticket(files, source, kept, {"round": number, "density": density, "rate": rate})
    save(ticket, out)
    typer.echo(f"{out}: {kept.nnz:,} of {kept.total:,} weights kept ({kept.density:.4%}), masks {kept.digest[:16]}")


def main() -> None:
    """The entry point: a wrong input is one line and status 2."""
    try:
        app()
    except (ValueError, TypeError) as error:
        print(f"sparseflow: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


class _Masked(Mapping[str, Tensor]):
    """A state whose masked tensors are +0.0 where they are pruned, one at a time."""

    def __init__(self, state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
        self._state, self._masks = state, masks

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._state[name]
        return torch.where(self._masks[name], tensor, 0.0) if name in self._masks else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)


def _prunable(files: ZeroFiles, filters: list[str] | None) -> dict[str, tuple[int, ...]]:
    noted: Mapping[str, Any] = files.about.get("prunable", {})
    matrices = [name for name, shape in files.shapes.items() if len(shape) > 1]
    if not filters and not noted:
        raise ValueError(
            f"{files.folder} does not say which weights are prunable; name them with --filter; it has: "
            f"{', '.join(matrices)}"
        )
    names = [name for name in matrices if any(fnmatchcase(name, glob) for glob in filters)] if filters else list(noted)
    if not names:
        raise ValueError(f"--filter {' '.join(filters or [])} matches no weight; they are: {', '.join(matrices)}")
    return {name: files.shapes[name] for name in names}


def _ticket(path: Path) -> Ticket:
    found = load(path)
    if not isinstance(found, Ticket):
        raise ValueError(f"--masks {path}: expected a ticket, got weights")
    return found


def _allocation(name: str) -> Allocation:
    for known in get_args(Allocation):
        if name == known:
            return cast(Allocation, known)
    raise ValueError(f"--allocation: expected one of {', '.join(get_args(Allocation))}, got {name!r}")


if __name__ == "__main__":
    main()
