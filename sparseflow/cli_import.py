"""`sparseflow import`: other people's pruned checkpoints as sparse safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sparseflow.cli_output import AsJson


def import_weights(
    source: Annotated[Path, typer.Argument(help="A checkpoint: safetensors, a state dict by torch.save, or .mdl.")],
    target: Annotated[Path, typer.Argument(help="The safetensors file to write.")],
    zeros: Annotated[bool, typer.Option("--zeros", help="Exact zeros without a mask are pruned weights.")] = False,
    form: Annotated[str, typer.Option("--format", help="compact: masks kept as they are; or dense.")] = "compact",
    as_json: AsJson = False,
) -> None:
    """Read what torch.nn.utils.prune, Cerebras or ModelOpt has pruned, and write it as sparse safetensors."""
    from sparseflow.inspection import import_checkpoint

    found = import_checkpoint(source, target, form, zeros)
    about = {"path": str(target), "bytes": target.stat().st_size, "masks": len(found.masks)}
    about |= {"density": found.masks.density, "digest": found.masks.digest}
    words = f"{target}: {about['bytes']:,} bytes, {form}; {len(found.masks)} masks, {found.masks.density:.2%} kept"
    typer.echo(json.dumps(about) if as_json else words)
