"""scikit-learn's digits: 1,797 images of 8×8, small enough for tests and there without any download."""

import hashlib
import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from sparseflow.data.splits import Data, TensorSplit, shuffled

_HELD_OUT = 300


def digits(flat: bool = True) -> Data:
    """The digits as float32 in [0, 1]: (64,) an image, or (1, 8, 8) where not `flat`.

    1,197 images for training, 300 for validation and 300 for test, always the same ones. Raises ValueError
    where scikit-learn is not installed.
    """
    location = fetch()
    # It takes a second to import, and nothing else here needs it.
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    shape = (64,) if flat else (1, 8, 8)
    # Sixteen grey levels above black.
    images = torch.from_numpy(pixels).float().div_(16).reshape(-1, *shape)
    targets = torch.from_numpy(labels).long()
    order = shuffled(len(images))

    def split(chosen: Tensor) -> TensorSplit:
        return TensorSplit(images[chosen], targets[chosen])

    return Data(
        name="digits",
        task="classification",
        train=split(order[2 * _HELD_OUT :]),
        validation=split(order[:_HELD_OUT]),
        test=split(order[_HELD_OUT : 2 * _HELD_OUT]),
        classes=10,
        input_shape=shape,
        source={"from": str(location), "sha256": hashlib.sha256(location.read_bytes()).hexdigest()},
    )


def find() -> Path | None:
    """The file of the digits inside scikit-learn, or None where that is not installed."""
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        return None
    return Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"


def fetch() -> Path:
    """The file of the digits. There is nothing to fetch: it is part of scikit-learn."""
    location = find()
    if location is None:
        raise ValueError("digits are part of scikit-learn, which is not installed: pip install scikit-learn")
    return location
