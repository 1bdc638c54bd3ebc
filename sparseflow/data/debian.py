"""Files out of Debian packages, on a machine with apt, without root and without installing anything."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

# Seconds. The largest of our packages is 31 MB, the package lists of a release about as much.
_TIMEOUT = 900


def unpack(packages: Sequence[str], scratch: Path) -> Path:
    """Download `packages` and return the root of a tree below `scratch` that holds their files.

    Uses the machine's package lists, or else fetches lists of its own into `scratch`, from the machine's
    sources. Raises OSError where there is no apt or it cannot deliver.
    """
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise OSError(f"{program} is not on PATH")
    downloads, root = scratch / "downloads", scratch / "root"
    downloads.mkdir()
    try:
        _apt(["download", *packages], downloads)
    except OSError:
        private = _private_lists(scratch)
        _apt([*private, "update"], downloads)
        _apt([*private, "download", *packages], downloads)
    for archive in sorted(downloads.glob("*.deb")):
        run(["dpkg-deb", "-x", str(archive), str(root)], scratch)
    return root


def run(command: Sequence[str], folder: Path) -> bytes:
    """The standard output of `command`, run in `folder`. Raises OSError with its last words if it fails."""
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT, check=True
        )
    except subprocess.CalledProcessError as error:
        words = error.stderr.decode(errors="replace").strip() or f"exit status {error.returncode}"
        raise OSError(f"{command[0]}: {words.splitlines()[-1]}") from error
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{command[0]}: no answer after {_TIMEOUT} s") from error
    return done.stdout


def _apt(arguments: Sequence[str], folder: Path) -> None:
    # As root, apt would hand the download to a user who may not write into our folder.
    options = ["-o", "APT::Sandbox::User=root", "-o", "Acquire::http::Timeout=30"]
    run(["apt-get", "-q", *options, *arguments], folder)


def _private_lists(scratch: Path) -> list[str]:
    state, cache = scratch / "state", scratch / "cache"
    (state / "lists" / "partial").mkdir(parents=True)
    (cache / "archives" / "partial").mkdir(parents=True)
    folders = [f"Dir::State={state}", f"Dir::State::lists={state / 'lists'}", f"Dir::Cache={cache}"]
    return [word for option in [*folders, "Debug::NoLocking=1"] for word in ("-o", option)]
