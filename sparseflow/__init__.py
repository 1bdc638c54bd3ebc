"""sparseflow: training of sparse networks that gets cheaper as they get sparser.

The public names, resolved on first use, so that `import sparseflow` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sparseflow import data, models
    from sparseflow.files import SparseFormatError, Ticket, Weights, load, save
    from sparseflow.hardware import backends
    from sparseflow.hardware.layers import SparseConv2d, SparseLinear
    from sparseflow.hardware.model import param_groups
    from sparseflow.hardware.plan import Plan, densify, plan, remask, sparsify
    from sparseflow.masks import Masks, Unstructured
    from sparseflow.training import schedules
    from sparseflow.training.controls import train_control
    from sparseflow.training.lottery import Round, imp, rounds
    from sparseflow.training.proof import ProofError
    from sparseflow.training.pruning import prune
    from sparseflow.training.trainer import Trainer
    from sparseflow.training.verdict import verdict

_HOMES = {
    "sparseflow.files": ("SparseFormatError", "Ticket", "Weights", "load", "save"),
    "sparseflow.hardware.layers": ("SparseConv2d", "SparseLinear"),
    "sparseflow.hardware.model": ("param_groups",),
    "sparseflow.hardware.plan": ("Plan", "densify", "plan", "remask", "sparsify"),
    "sparseflow.masks": ("Masks", "Unstructured"),
    "sparseflow.training.controls": ("train_control",),
    "sparseflow.training.lottery": ("Round", "imp", "rounds"),
    "sparseflow.training.proof": ("ProofError",),
    "sparseflow.training.pruning": ("prune",),
    "sparseflow.training.trainer": ("Trainer",),
    "sparseflow.training.verdict": ("verdict",),
}
_MODULES = {
    "backends": "sparseflow.hardware.backends",
    "data": "sparseflow.data",
    "models": "sparseflow.models",
    "schedules": "sparseflow.training.schedules",
    "testing": "sparseflow.testing",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME_OF, *_MODULES])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        found: Any = import_module(_MODULES[name])
    elif name in _HOME_OF:
        found = getattr(import_module(_HOME_OF[name]), name)
    else:
        raise AttributeError(f"module 'sparseflow' has no attribute {name!r}; it has: {', '.join(__all__)}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
