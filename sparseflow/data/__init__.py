"""Data sets by name, each cut into the same splits on every machine."""

from collections.abc import Callable, Mapping
from pathlib import Path

from sparseflow.data import corpus, fashion, handwriting
from sparseflow.data.corpus import Characters, text
from sparseflow.data.fashion import fashion_mnist
from sparseflow.data.handwriting import digits
from sparseflow.data.splits import Data, DatasetSplit, MapDataset, Split, TensorSplit, TokenSplit
from sparseflow.resolve import call, choose, unknown

__all__ = [
    "Characters",
    "Data",
    "DatasetSplit",
    "MapDataset",
    "Split",
    "TensorSplit",
    "TokenSplit",
    "available",
    "digits",
    "fashion_mnist",
    "fetch",
    "load",
    "text",
]

_LOADERS: dict[str, Callable[..., Data]] = {"fashion_mnist": fashion_mnist, "digits": digits, "text": text}
_FETCHERS: dict[str, Callable[[], Path]] = {
    "fashion_mnist": fashion.fetch,
    "digits": handwriting.fetch,
    "text": corpus.fetch,
}


def load(name: str, options: Mapping[str, object]) -> Data:
    """The data that a recipe names: one of ours, or `module:function` of the user's, called with `options`.

    Raises ValueError for an unknown name or option and for data that is not on this machine, TypeError for a
    value or a result of the wrong type. Never downloads.
    """
    data = call(choose("data", name, _LOADERS), options, name)
    if not isinstance(data, Data):
        raise TypeError(f"data {name!r} must return a sparseflow.data.Data, got {type(data).__name__}")
    return data


def fetch(name: str) -> Path:
    """Where the data called `name` lies on this machine, once it does: downloads it where need be.

    Raises ValueError for an unknown name, and where the data cannot be had, with the reasons.
    """
    if name not in _FETCHERS:
        raise ValueError(unknown("data to fetch", name, _FETCHERS))
    return _FETCHERS[name]()


def available() -> dict[str, str]:
    """Each data set's name, and where it lies on this machine or how to get it."""
    found = {"fashion_mnist": fashion.find(), "digits": handwriting.find(), "text": corpus.find()}
    how = {"digits": "pip install scikit-learn"}
    return {
        name: str(place) if place else f"not here: run `{how.get(name, f'sparseflow data {name}')}`"
        for name, place in found.items()
    }
