"""`sparseflow doctor` by all processes of a launch: `torchrun … -m sparseflow_launchers.doctor RECIPE --out DIR`.

Beside what one process finds out, they say whether they see the same folder, time, versions and recipe. Rank 0 speaks;
the exit status is everybody's.
"""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stderr
from datetime import timedelta

import torch.distributed as dist

from sparseflow import cli
from sparseflow_launchers.launch import asked_processes, check_world

# A rank that does not come within this time is not worth waiting for.
_PATIENCE = timedelta(seconds=120)


def main() -> None:
    """Joins the launch, if there is one, and runs the command."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        check_world(asked_processes(), world)
        if world > 1:
            dist.init_process_group("gloo", timeout=_PATIENCE)
    except (ValueError, dist.DistNetworkError, dist.DistStoreError) as error:
        print(f"sparseflow: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    sys.argv.insert(1, "doctor")
    main_rank = world == 1 or dist.get_rank() == 0
    try:
        # What rank 0 complains of, all do.
        with open(os.devnull, "w") as nowhere, redirect_stderr(sys.stderr if main_rank else nowhere):
            cli.main()
    finally:
        if world > 1:
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
