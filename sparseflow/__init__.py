"""sparseflow: training of sparse networks that gets cheaper as they get sparser.

The public names, resolved on first use, so that `import sparseflow` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sparseflow import data as data
    from sparseflow import integrations as integrations
    from sparseflow import models as models
    from sparseflow import theory as theory
    from sparseflow.files import SparseFormatError as SparseFormatError
    from sparseflow.files import Ticket as Ticket
    from sparseflow.files import Weights as Weights
    from sparseflow.files import load as load
    from sparseflow.files import save as save
    from sparseflow.hardware import backends as backends
    from sparseflow.hardware.layers import SparseConv2d as SparseConv2d
    from sparseflow.hardware.layers import SparseLinear as SparseLinear
    from sparseflow.hardware.model import param_groups as param_groups
    from sparseflow.hardware.plan import Plan as Plan
    from sparseflow.hardware.plan import densify as densify
    from sparseflow.hardware.plan import plan as plan
    from sparseflow.hardware.plan import remask as remask
    from sparseflow.hardware.plan import sparsify as sparsify
    from sparseflow.hardware.streaming.model import stream as stream
    from sparseflow.hardware.streaming.model import stream_of as stream_of
    from sparseflow.hardware.traffic import charge as charge
    from sparseflow.masks import NM as NM
    from sparseflow.masks import Block as Block
    from sparseflow.masks import Masks as Masks
    from sparseflow.masks import Unstructured as Unstructured
    from sparseflow.masks.overlap import overlap_of as overlap_of
    from sparseflow.masks.overlap import sign_agreement as sign_agreement
    from sparseflow.masks.sign_in import sign_flips as sign_flips
    from sparseflow.training import schedules as schedules
    from sparseflow.training import sparse_ift as sparse_ift
    from sparseflow.training.at_init import prune_at_init as prune_at_init
    from sparseflow.training.connection import broken_layer as broken_layer
    from sparseflow.training.connection import check_connected as check_connected
    from sparseflow.training.connectivity import barrier as barrier
    from sparseflow.training.connectivity import stability as stability
    from sparseflow.training.connectivity import suggested_step as suggested_step
    from sparseflow.training.controls import train_control as train_control
    from sparseflow.training.controls import train_ticket as train_ticket
    from sparseflow.training.distillation import Distillation as Distillation
    from sparseflow.training.distillation import distilled as distilled
    from sparseflow.training.erasure import erasure as erasure
    from sparseflow.training.lottery import imp as imp
    from sparseflow.training.lottery import rounds as rounds
    from sparseflow.training.muon import Muon as Muon
    from sparseflow.training.muon import muon_groups as muon_groups
    from sparseflow.training.proof import ProofError as ProofError
    from sparseflow.training.pruning import prune as prune
    from sparseflow.training.round import Round as Round
    from sparseflow.training.shrink import shrink as shrink
    from sparseflow.training.sign_in import SignIn as SignIn
    from sparseflow.training.strong_ticket import strong_ticket as strong_ticket
    from sparseflow.training.trainer import Trainer as Trainer
    from sparseflow.training.verdict import verdict as verdict
    from sparseflow.training.wiring import channels as channels

_HOMES = {
    "sparseflow.files": ("SparseFormatError", "Ticket", "Weights", "load", "save"),
    "sparseflow.hardware.layers": ("SparseConv2d", "SparseLinear"),
    "sparseflow.hardware.model": ("param_groups",),
    "sparseflow.hardware.plan": ("Plan", "densify", "plan", "remask", "sparsify"),
    "sparseflow.hardware.streaming.model": ("stream", "stream_of"),
    "sparseflow.hardware.traffic": ("charge",),
    "sparseflow.masks": ("NM", "Block", "Masks", "Unstructured"),
    "sparseflow.masks.overlap": ("overlap_of", "sign_agreement"),
    "sparseflow.masks.sign_in": ("sign_flips",),
    "sparseflow.training.at_init": ("prune_at_init",),
    "sparseflow.training.connection": ("broken_layer", "check_connected"),
    "sparseflow.training.connectivity": ("barrier", "stability", "suggested_step"),
    "sparseflow.training.controls": ("train_control", "train_ticket"),
    "sparseflow.training.distillation": ("Distillation", "distilled"),
    "sparseflow.training.erasure": ("erasure",),
    "sparseflow.training.lottery": ("Round", "imp", "rounds"),
    "sparseflow.training.muon": ("Muon", "muon_groups"),
    "sparseflow.training.proof": ("ProofError",),
    "sparseflow.training.pruning": ("prune",),
    "sparseflow.training.shrink": ("shrink",),
    "sparseflow.training.sign_in": ("SignIn",),
    "sparseflow.training.strong_ticket": ("strong_ticket",),
    "sparseflow.training.trainer": ("Trainer",),
    "sparseflow.training.verdict": ("verdict",),
    "sparseflow.training.wiring": ("channels",),
}
_MODULES = {
    "backends": "sparseflow.hardware.backends",
    "data": "sparseflow.data",
    "integrations": "sparseflow.integrations",
    "models": "sparseflow.models",
    "schedules": "sparseflow.training.schedules",
    "sparse_ift": "sparseflow.training.sparse_ift",
    "testing": "sparseflow.testing",
    "theory": "sparseflow.theory",
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
