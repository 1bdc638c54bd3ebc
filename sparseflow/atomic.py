"""A file that is there whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yields a file to write to, which takes the place of `path` when the block ends without an error.

    The bytes go to a temporary file in the same directory, are flushed to the disk and renamed over `path`.
    After any error, Ctrl-C included, `path` is as it was and the temporary file is gone. OSError as the
    system raises it; FileNotFoundError where the directory does not exist.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"cannot write {target}: expected a directory {target.parent}, found none; make it first"
        )
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        # "x" leaves the permissions to the umask, as for any other file, and never opens one that is there.
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(target.parent)


def sync_directory(directory: Path) -> None:
    """Flushes the names in a directory to the disk: a rename itself must survive a power cut."""
    # Windows cannot open a directory, and needs no such call.
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
