"""Fashion-MNIST: 70,000 grey images of clothing in ten classes (Xiao et al., 2017, arXiv:1708.07747)."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

from torch import Tensor

from sparseflow.data import debian
from sparseflow.data.idx import IdxFile
from sparseflow.data.places import make_own_folder, missing, search_path
from sparseflow.data.splits import Data, TensorSplit, shuffled

# Of the decompressed content: Debian's package and the authors' site compress the same bytes differently.
TRAIN_IMAGES = IdxFile(
    "train-images-idx3-ubyte.gz",
    (60_000, 28, 28),
    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
)
TRAIN_LABELS = IdxFile(
    "train-labels-idx1-ubyte.gz",
    (60_000,),
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
)
TEST_IMAGES = IdxFile(
    "t10k-images-idx3-ubyte.gz",
    (10_000, 28, 28),
    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
)
TEST_LABELS = IdxFile(
    "t10k-labels-idx1-ubyte.gz",
    (10_000,),
    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
)
FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)
HOME_PAGE = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_NAME = "fashion_mnist"
_FOLDER = "fashion-mnist"
_PACKAGE = "dataset-fashion-mnist"


def fashion_mnist(flat: bool = True) -> Data:
    """Fashion-MNIST as float32 in [0, 1]: (784,) an image, or (1, 28, 28) where not `flat`.

    55,000 images for training and 5,000 for validation, cut from the published training set always alike;
    10,000 for test. Every file is checked against its sha256. Raises ValueError where the data is not on this
    machine or is not the published one.
    """
    folder = find()
    if folder is None:
        raise ValueError(missing(_NAME, search_path(_FOLDER)))
    train_images, train_labels, test_images, test_labels = (file.read(folder) for file in FILES)
    order = shuffled(len(train_images))
    held_out = len(train_images) // 12
    shape = (784,) if flat else (1, 28, 28)
    return Data(
        name=_NAME,
        task="classification",
        train=_split(train_images[order[held_out:]], train_labels[order[held_out:]], shape),
        validation=_split(train_images[order[:held_out]], train_labels[order[:held_out]], shape),
        test=_split(test_images, test_labels, shape),
        classes=10,
        input_shape=shape,
        source={"from": str(folder), "sha256": _digest()},
    )


def find() -> Path | None:
    """The first folder of the search path that holds any of the files, or None."""
    for folder in search_path(_FOLDER):
        if any((folder / file.name).exists() for file in FILES):
            return folder
    return None


def fetch(base_url: str = HOME_PAGE) -> Path:
    """The folder with the checked files, which are fetched from Debian or else from `base_url` where need be.

    Files come whole and checked or not at all. Raises ValueError that says how each way failed.
    """
    folder = find()
    if folder is not None and _wrong(folder) is None:
        return folder
    target = make_own_folder(_FOLDER)
    ways: dict[str, Callable[[Path], Path]] = {
        "Debian": _from_debian,
        base_url: partial(_from_web, base_url=base_url),
    }
    failures = []
    for way, download in ways.items():
        # Beside its target, so that the last step is a rename.
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=target.parent) as scratch:
            try:
                source = download(Path(scratch))
            except (OSError, HTTPException) as error:
                failures.append(f"{way}: {error}")
                continue
            if wrong := _wrong(source):
                failures.append(f"{way}: {wrong}")
                continue
            for file in FILES:
                os.replace(source / file.name, target / file.name)
            return target
    names = ", ".join(file.name for file in FILES)
    raise ValueError(f"could not fetch {_NAME} ({'; '.join(failures)}); put {names} into {target} yourself")


def _from_debian(scratch: Path) -> Path:
    return debian.unpack([_PACKAGE], scratch) / "usr/share/datasets" / _FOLDER


def _from_web(scratch: Path, base_url: str) -> Path:
    for file in FILES:
        with urlopen(base_url + file.name, timeout=60) as answer, (scratch / file.name).open("wb") as copy:
            shutil.copyfileobj(answer, copy)
    return scratch


def _wrong(folder: Path) -> str | None:
    try:
        for file in FILES:
            file.read(folder)
    except ValueError as error:
        return str(error)
    return None


def _split(images: Tensor, labels: Tensor, shape: tuple[int, ...]) -> TensorSplit:
    return TensorSplit(images.reshape(-1, *shape).float().div_(255), labels.long())


def _digest() -> str:
    listing = "".join(f"{file.sha256}  {file.name}\n" for file in FILES)
    return hashlib.sha256(listing.encode()).hexdigest()
