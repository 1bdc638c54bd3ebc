"""Where data sets lie on this machine."""

import os
from pathlib import Path

# Where Debian's packages put theirs.
SYSTEM = Path("/usr/share/datasets")


def own_folder(name: str) -> Path:
    """Where this user's copy of `name` belongs: below $SPARSEFLOW_DATA if set, else the user's cache."""
    if chosen := os.environ.get("SPARSEFLOW_DATA"):
        return Path(chosen).expanduser() / name
    return _cache() / name


def make_own_folder(name: str) -> Path:
    """`own_folder`, made where it is not there. Raises ValueError where that is not possible."""
    folder = own_folder(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make {folder} ({error}); set SPARSEFLOW_DATA to a folder of yours") from error
    return folder


def search_path(name: str) -> list[Path]:
    """The folders in which `name` is looked for, `own_folder` first."""
    return list(dict.fromkeys([own_folder(name), _cache() / name, SYSTEM / name]))


def missing(name: str, folders: list[Path]) -> str:
    """The text of the error about a data set that is in none of the `folders`."""
    looked = ", ".join(str(folder) for folder in folders)
    return f"no {name} data on this machine (looked in {looked}): run `sparseflow data {name}` to fetch it"


def _cache() -> Path:
    # An empty variable counts as unset, as the XDG specification says.
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "sparseflow"
