"""How the parameters of a model are stored: counted where it is sparse, modelled from a plan where it is not yet."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import nn

from sparseflow.hardware import backends
from sparseflow.hardware.choice import Plan, Row
from sparseflow.hardware.layers import SparseLayer
from sparseflow.hardware.names import dense_name
from sparseflow.hardware.streaming.execution import stream_of
from sparseflow.hardware.survey import geometry_of, survey
from sparseflow.hardware.workload import Workload

# AdamW's, of the values' dtype.
MOMENTS = 2

STREAM = "stream"

# Backends whose values are the whole weight matrix; those of all others are the kept weights.
_WHOLE = ("dense",)


@dataclass(frozen=True)
class Stored:
    """One parameter as it is stored: how many numbers of how many bytes, and where FSDP2 cuts it.

    weights: of the dense parameter. values: stored, with their gradient and moments; of which `rows` lie along the
    first dimension. index_bytes: of the structure beside them. backend: None for a parameter that is not pruned.
    block: what FSDP2 gathers as one; "" for the root.
    """

    name: str
    weights: int
    values: int
    rows: int
    itemsize: int
    index_bytes: int
    backend: str | None
    trained: bool
    block: str

    @property
    def bytes(self) -> int:
        """Of the values; those of the gradient, where it is trained, and of each moment are as many."""
        return self.values * self.itemsize

    @property
    def gradient_bytes(self) -> int:
        """What is reduced over the ranks."""
        return self.bytes if self.trained else 0

    def shard_bytes(self, world: int) -> int:
        """Of the largest shard of the values, which is the first; the others are padded to it on the wire."""
        return -(-self.rows // world) * (self.bytes // self.rows if self.rows else 0)


def stored_parameters(model: nn.Module, plan: Plan) -> tuple[Stored, ...]:
    """Every parameter of the model, each once, as the plan's backends store it; those of sparse layers as they are.

    The model may be on the meta device. `ValueError` for a plan of another model.
    """
    found = survey(model).sites
    rows = {row.name: row for row in plan.rows}
    foreign = [name for name in rows if name not in found]
    if foreign:
        raise ValueError(f"this plan is for another model: it has no layer {', '.join(foreign)}; make a new plan")
    layers = {id(site.weight): (name, site.module) for name, site in found.items()}
    blocks = _blocks(model)
    stored = []
    stream = stream_of(model)
    for path, parameter in model.named_parameters():
        plain = _plain(path, parameter, blocks)
        name, layer = layers.get(id(parameter), (plain.name, None))
        if stream is not None and stream.store.masked(key := stream.name_of(parameter)):
            kept = stream.store.nnz(key)
            indices = stream.store.parameter(key).index_bytes
            stored.append(replace(plain, values=kept, rows=kept, index_bytes=indices, backend=STREAM))
        elif isinstance(layer, SparseLayer):
            stored.append(_counted(plain, layer))
        elif layer is not None and name in rows:
            stored.append(_modelled(plain, layer, parameter, rows[name]))
        else:
            stored.append(plain)
    return tuple(stored)


def paper_plan(model: nn.Module, density: float, backend: str) -> Plan:
    """A plan for a question on paper: every prunable layer at that density on that backend. Nothing is timed.

    No masks and no weights are needed: the model may be on the meta device.
    """
    found = survey(model)
    rows = []
    for name, site in found.sites.items():
        shape = site.shape[::-1] if site.transposed else site.shape
        work = Workload(shape=shape, geometry=geometry_of(site.module), density=density, dtype=site.weight.dtype)
        layout = backends.get(backend).layout(work)
        rows.append(Row(name, shape, density, backend, layout, "on paper"))
    return Plan(tuple(rows), found.left_dense)


def _plain(path: str, parameter: nn.Parameter, blocks: list[str]) -> Stored:
    rows = parameter.shape[0] if parameter.dim() else 1
    return Stored(
        name=dense_name(path),
        weights=parameter.numel(),
        values=parameter.numel(),
        rows=rows,
        itemsize=parameter.itemsize,
        index_bytes=0,
        backend=None,
        trained=parameter.requires_grad,
        block=max((block for block in blocks if path.startswith(f"{block}.")), key=len, default=""),
    )


def _counted(plain: Stored, layer: SparseLayer) -> Stored:
    values = layer.values
    return replace(
        plain,
        weights=math.prod(layer.weight_shape),
        rows=values.shape[0],
        index_bytes=layer.op.nbytes,
        backend=layer.backend,
    )


def _modelled(plain: Stored, layer: nn.Module, weight: nn.Parameter, row: Row) -> Stored:
    whole = row.backend in _WHOLE
    values = plain.weights if whole else round(row.density * plain.weights)
    work = Workload(shape=row.shape, geometry=geometry_of(layer), density=row.density, dtype=weight.dtype)
    # A backend's own count is of values, gradient, two moments and indices.
    indices = backends.get(row.backend).cost(work).bytes - (2 + MOMENTS) * plain.itemsize * values
    return replace(
        plain,
        values=values,
        rows=row.shape[0] if whole else values,
        index_bytes=max(0, indices),
        backend=row.backend,
    )


def _blocks(model: nn.Module) -> list[str]:
    """What FSDP2 gathers as one: the elements of module lists, such as a transformer's blocks."""
    return [
        f"{path}.{key}" if path else key
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        for key in module._modules
    ]
