"""The one name of a parameter: its dense name in the unwrapped model, whatever wraps or replaces the layer."""

from __future__ import annotations

_WRAPPERS = ("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


def dense_name(name: str) -> str:
    """`module.fc.values` → `fc.weight`: wrappers' parts stripped, a sparse layer's values called its weight.

    Only whole leading or inner parts that wrappers insert are stripped; a model whose own child is called
    `module` loses that part too, in every name alike.
    """
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    if parts and parts[-1] == "values":
        parts[-1] = "weight"
    return ".".join(parts)
