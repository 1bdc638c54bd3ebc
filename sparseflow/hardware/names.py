"""The one name of a parameter: its dense name in the unwrapped model, whatever wraps or replaces the layer."""

from __future__ import annotations

_WRAPPERS = ("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


def dense_name(name: str) -> str:
    """`module.fc.values` → `fc.weight`: a parameter's name as `unwrapped`, a sparse layer's values called its weight.

    Only for models whose own parameters are not called `values`.
    """
    path, _, key = unwrapped(name).rpartition(".")
    key = "weight" if key == "values" else key
    return f"{path}.{key}" if path else key


def unwrapped(name: str) -> str:
    """`module._orig_mod.fc.weight` → `fc.weight`: the parts that wrappers insert are stripped.

    A model whose own child is called `module` loses that part too, in every name alike.
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
