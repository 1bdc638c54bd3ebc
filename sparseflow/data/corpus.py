"""Text for language models: one file, read character by character."""

import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sparseflow.data import debian
from sparseflow.data.places import make_own_folder, missing, search_path
from sparseflow.data.splits import Data, TokenSplit

_FOLDER = "bible-kjv"
_FILE = "bible-kjv.txt"
_VERSES = 31_102


@dataclass(frozen=True)
class Characters:
    """A vocabulary of single characters; the token of a character is its place in `alphabet`."""

    alphabet: str

    @classmethod
    def of(cls, text: str) -> "Characters":
        """The sorted characters of `text`: the same text always gives the same tokens."""
        return cls("".join(sorted(set(text))))

    def encode(self, text: str) -> Tensor:
        """Tokens (n,) of int64. Raises ValueError for a character outside the alphabet."""
        token_of = {character: token for token, character in enumerate(self.alphabet)}
        if strangers := set(text) - token_of.keys():
            raise ValueError(f"characters outside the vocabulary: {''.join(sorted(strangers))!r}")
        return torch.tensor([token_of[character] for character in text], dtype=torch.int64)

    def decode(self, tokens: Tensor) -> str:
        return "".join(self.alphabet[token] for token in tokens.tolist())


def text(path: str | None = None, context: int = 128, stride: int | None = None) -> Data:
    """A text by its characters: the first 90 % for training, then 5 % for validation and 5 % for test.

    `path` is any UTF-8 file; without it, the King James Bible that `sparseflow data text` fetches (4.4 MB, 73
    characters). Training windows start every `stride` characters, by default every `context`, so that an
    epoch predicts each character once. Validation and test windows never overlap.
    Raises ValueError where the file is missing, changed, not UTF-8 or too short for the context.
    """
    file = _bible() if path is None else Path(path).expanduser()
    content = _read(file)
    characters = Characters.of(content)
    tokens = characters.encode(content)
    first, second = len(tokens) * 90 // 100, len(tokens) * 95 // 100
    return Data(
        name="text",
        task="language",
        train=TokenSplit(tokens[:first], context, context if stride is None else stride),
        validation=TokenSplit(tokens[first:second], context, context),
        test=TokenSplit(tokens[second:], context, context),
        classes=len(characters.alphabet),
        input_shape=(context,),
        source={"from": str(file), "sha256": _sha256(file)},
        decode=characters.decode,
    )


def find() -> Path | None:
    """The text as `fetch` left it, or None."""
    candidates = (folder / _FILE for folder in search_path(_FOLDER))
    return next((file for file in candidates if file.exists()), None)


def fetch() -> Path:
    """The King James Bible as plain text, printed by Debian's program of that name where it is not here yet.

    The text is written whole or not at all, beside its sha256 in the form that `sha256sum --check` reads.
    Raises ValueError where Debian's packages cannot be had.
    """
    if (file := find()) is not None and _sha256(file) == _recorded_sha256(file):
        return file
    target = make_own_folder(_FOLDER) / _FILE
    # Beside its target, so that the last step is a rename.
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=target.parent) as scratch:
        try:
            printed = _print_bible(Path(scratch))
        except OSError as error:
            raise ValueError(
                f"could not fetch the text ({error}); use a text of your own: `path` takes any UTF-8 file"
            ) from error
        fresh, digest = Path(scratch) / _FILE, _digest_file(target)
        fresh.write_bytes(printed)
        fresh_digest = Path(scratch) / digest.name
        fresh_digest.write_text(f"{_sha256(fresh)}  {_FILE}\n")
        os.replace(fresh_digest, digest)
        os.replace(fresh, target)
    return target


def _print_bible(scratch: Path) -> bytes:
    root = debian.unpack(["bible-kjv", "bible-kjv-text"], scratch)
    # The program joins the folder and the file's name as they are: the slash at the end is needed.
    data = f"{root}/usr/lib/"
    printed = debian.run([f"{root}/usr/bin/bible", "-f", "-p", data, "gen1:1-rev22:21"], scratch)
    verses = re.findall(rb"^\w+:\d+ ", printed, flags=re.MULTILINE)
    if len(verses) != _VERSES:
        raise OSError(f"expected {_VERSES:,} verses from the program `bible`, got {len(verses):,}")
    return printed


def _bible() -> Path:
    file = find()
    if file is None:
        raise ValueError(missing("text", search_path(_FOLDER)))
    if _sha256(file) != _recorded_sha256(file):
        raise ValueError(f"{file} has changed since it was fetched; run `sparseflow data text` to fetch it again")
    return file


def _read(file: Path) -> str:
    if not file.is_file():
        raise ValueError(f"no file {file}; `path` is that of a UTF-8 text file")
    try:
        # By bytes: reading as text would turn \r\n into \n.
        return file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error}); convert it first") from error


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _recorded_sha256(file: Path) -> str | None:
    record = _digest_file(file)
    return record.read_text().split()[0] if record.exists() else None


def _digest_file(file: Path) -> Path:
    return file.with_name(file.name + ".sha256")
