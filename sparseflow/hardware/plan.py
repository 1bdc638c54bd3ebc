"""plan, sparsify, remask, densify: choose a backend for each layer, say why, put it in, and take it out again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from sparseflow.hardware import backends
from sparseflow.hardware.backends import SparseOp
from sparseflow.hardware.choice import Candidate, Plan, Row
from sparseflow.hardware.layers import SparseLayer
from sparseflow.hardware.optimizers import check_rebindable, mark_remasked, mixes_elements, rebind, refuse_mixing
from sparseflow.hardware.places import mover
from sparseflow.hardware.relu import pass_rectified, relus_of, restore_relus
from sparseflow.hardware.routing import route, route_to
from sparseflow.hardware.sample import Sample, Seen, observe
from sparseflow.hardware.streamed_plan import remask_stream, sparsify_stream, stream_rows
from sparseflow.hardware.streaming.execution import stream_of
from sparseflow.hardware.survey import Site, Survey, extra_padding_of, geometry_of, survey
from sparseflow.hardware.swap import hooked, pack_mask, put, to_dense, to_sparse
from sparseflow.hardware.timings import Timings
from sparseflow.hardware.workload import Kind, Workload

__all__ = ["Candidate", "Plan", "Row", "densify", "plan", "remask", "sparsify", "workloads"]

_STALE = "this plan cannot be replayed here: make a new one, or resume with --replan"


def plan(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    sample: Sample | None = None,
    backend: str = "auto",
    fresh: bool = False,
    crossovers: bool = True,
) -> Plan:
    """Runs the model on the sample, times the candidates of each masked layer on this machine, and chooses.

    `sample` is a tensor, tuple or dict as the model's forward takes it, of the size that training will use. The
    model is not changed: RNGs, buffers and modes are restored. It runs in eval mode and, where something could be
    chained or fused, in train mode once more (see `observe`). Timings are kept on disk (see `Timings`) and found
    again unless `fresh`. With a backend's name nothing is timed, and the sample may be left out: it then tells which
    layers form chains. With `crossovers` it says at which density the runner-up would win, which takes as long
    again. `ValueError` for masks that do not fit the model.
    """
    if backend == "auto" and sample is None and stream_of(model) is None:
        raise ValueError(
            'backend="auto" needs to see the model run: pass sample= (an input batch) or plan= (from sf.plan), '
            f"or name a backend: {', '.join(backends.available())}"
        )
    found = survey(model)
    works, seen = _observed(model, found, masks, sample)
    if stream_of(model) is not None:
        return Plan(stream_rows(works, backend), found.left_dense)
    flows = {name: one.flow for name, one in seen.items()}
    if backend != "auto":
        return Plan(route_to(backend, works, flows), found.left_dense)
    timings = Timings(fresh)
    rows = route(works, flows, timings, crossovers)
    timings.save()
    return Plan(rows, found.left_dense)


def workloads(model: nn.Module, masks: Mapping[str, Tensor], sample: Sample) -> dict[str, Workload]:
    """What each prunable layer computes on the sample; those that have no mask here keep all their weights.

    `ValueError` for masks that do not fit the model.
    """
    found = survey(model)
    everything = {name: torch.ones(site.shape, dtype=torch.bool) for name, site in found.sites.items()}
    return _observed(model, found, {**everything, **masks}, sample)[0]


def _observed(
    model: nn.Module, found: Survey, masks: Mapping[str, Tensor], sample: Sample | None
) -> tuple[dict[str, Workload], dict[str, Seen]]:
    sites = {name: found.find(name, mask) for name, mask in masks.items()}
    kinds: dict[str, tuple[Kind, list[nn.Module]]] = {
        name: (geometry_of(site.module).kind, site.modules) for name, site in sites.items()
    }
    seen = {name: Seen() for name in sites} if sample is None else observe(model, sample, kinds)
    works = {name: _workload(site, masks[name], seen[name]) for name, site in sites.items()}
    if (stream := stream_of(model)) is not None:
        works = {name: replace(work, device=stream.device) for name, work in works.items()}
    return works, seen


# `sparsify` has an argument of that name.
_plan = plan


def sparsify(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    backend: str = "auto",
    sample: Sample | None = None,
    plan: Plan | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> nn.Module:
    """The model with each masked layer replaced, in place, by a sparse one of the same name.

    `plan` is replayed; else `backend` names one for all layers, or "auto" plans with `sample`. An optimizer is
    rebound: the values take the weight's place in its group, with the optimizer state packed alike. `ValueError`
    for masks that do not fit the model, a backend that cannot run a layer, or an optimizer of another model.
    """
    found = survey(model)
    sites = {name: found.find(name, mask) for name, mask in masks.items()}
    if (stream := stream_of(model)) is not None:
        sparsify_stream(stream, masks, plan)
        return model
    already = [name for name, site in sites.items() if isinstance(site.module, SparseLayer)]
    if already:
        raise ValueError(f"already sparse: {', '.join(already)}; use remask for new masks, or densify first")
    if optimizer is not None:
        check_rebindable(optimizer, model)
    chosen = plan if plan is not None else _plan(model, masks, sample, backend)
    relus = relus_of(model)
    # All is checked and packed before the first layer is swapped.
    ops = {
        name: _pack(site, masks[name], chosen.row(name), relus, optimizer, plan is not None)
        for name, site in sites.items()
    }
    for name, site in sites.items():
        row = chosen.row(name)
        layers = to_sparse(site, ops[name], row.backend, optimizer)
        model = put(model, site, layers)
        _chain(row, list(layers.values()), [relus[relu] for relu in row.relus])
    return model


def remask(model: nn.Module, masks: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None = None) -> nn.Module:
    """The sparse model with new masks for the layers named; weights kept by both masks stay, new ones start at zero.

    Values, gradients' owners and every optimizer tensor follow: new.pack_values(old.unpack_values(t)). A layer
    whose number of values stays the same keeps its Parameter.
    """
    found = survey(model)
    if (stream := stream_of(model)) is not None:
        remask_stream(stream, {name: mask for name, mask in masks.items() if found.find(name, mask)})
        return model
    layers = {name: _sparse_site(found, name, mask) for name, mask in masks.items()}
    if optimizer is not None:
        check_rebindable(optimizer, model)
    for name, mask in masks.items():
        _remask_site(layers[name], mask, optimizer)
    return model


def densify(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> nn.Module:
    """The model with its original classes again, in place; zeros at pruned places. A streamed one stays streamed."""
    if (stream := stream_of(model)) is not None:
        stream.densify()
        return model
    if optimizer is not None:
        check_rebindable(optimizer, model)
    for site in survey(model).sites.values():
        if isinstance(site.module, SparseLayer):
            model = put(model, site, to_dense(site, optimizer))
    restore_relus(model)
    return model


def _sparse_site(found: Survey, name: str, mask: Tensor) -> Site:
    site = found.find(name, mask)
    if not isinstance(site.module, SparseLayer):
        raise ValueError(f"{name!r} is dense; sparsify it before remask")
    return site


def _remask_site(site: Site, mask: Tensor, optimizer: torch.optim.Optimizer | None) -> None:
    first = site.module
    assert isinstance(first, SparseLayer)
    old_op, old_values = first.op, first.values
    new_op = first.repack(mask)

    move = mover(old_op, new_op, torch.Size(site.shape).numel())
    first.install(new_op, move(old_values.detach()))
    first.values.grad = None
    for other in site.modules[1:]:
        assert isinstance(other, SparseLayer)
        other.values = first.values
        other.install(new_op, first.values.detach())
    followed = optimizer is not None and rebind(optimizer, old_values, first.values, move)
    if not followed and first.values is old_values and _differ(old_op, new_op, old_values):
        mark_remasked(old_values)


def _differ(old: SparseOp, new: SparseOp, values: Tensor) -> bool:
    ones = torch.ones_like(values, dtype=torch.float32)
    return not torch.equal(old.unpack_values(ones), new.unpack_values(ones))


def _chain(row: Row, layers: list[SparseLayer], relus: list[nn.ReLU]) -> None:
    # Hooks, which may have come after the plan, see a layer's output and a ReLU's input as they always were.
    if any(hooked(module) for module in (*layers, *relus)):
        return
    for layer in layers:
        layer.relu, layer.feature_major = row.relu, row.feature_major
    for relu in relus:
        pass_rectified(relu)


def _pack(
    site: Site,
    mask: Tensor,
    row: Row,
    relus: Mapping[str, nn.ReLU],
    optimizer: torch.optim.Optimizer | None,
    replayed: bool,
) -> SparseOp:
    try:
        _check_row(site, mask, row)
        _check_relus(row, relus)
        op = pack_mask(site, mask, row.backend, row.layout)
    except ValueError as error:
        raise ValueError(f"{error}; {_STALE}" if replayed else str(error)) from None
    if optimizer is not None and mixes_elements(optimizer):
        refuse_mixing(optimizer, row.backend)
    return op


def _check_row(site: Site, mask: Tensor, row: Row) -> None:
    work = _workload(site, mask, Seen())
    reason = backends.get(row.backend).unsupported(work)
    if reason is not None:
        raise ValueError(f"backend {row.backend!r} cannot run {site.name!r}: {reason}")
    if row.shape != work.shape:
        raise ValueError(f"the plan for {site.name!r} was made for shape {row.shape}, got {work.shape}")
    if str(work.geometry) not in row.layout.split("/"):
        raise ValueError(f"the plan for {site.name!r} was made for {row.layout}, got {work.geometry}")


def _check_relus(row: Row, relus: Mapping[str, nn.ReLU]) -> None:
    for name in row.relus:
        if name not in relus:
            raise ValueError(
                f"the plan has {row.name!r} do the work of an nn.ReLU called {name!r}, and this model has "
                f"{', '.join(map(repr, relus)) or 'none'}"
            )


def _workload(site: Site, mask: Tensor, seen: Seen) -> Workload:
    weight = site.weight
    shape = site.shape[::-1] if site.transposed else site.shape
    return Workload(
        shape=tuple(shape),
        geometry=geometry_of(site.module),
        rows=seen.rows,
        image=_padded(seen.image, extra_padding_of(site.module)),
        dtype=weight.dtype,
        compute_dtype=seen.dtype if seen.rows else weight.dtype,
        device=weight.device,
        density=int(mask.sum()) / mask.numel(),
        needs_dx=seen.needs_dx,
        threads=torch.get_num_threads(),
        bias=site.module.bias is not None,
    )


def _padded(image: tuple[int, int] | None, padding: tuple[int, ...] | None) -> tuple[int, int] | None:
    if image is None or padding is None:
        return image
    left, right, top, bottom = padding
    return image[0] + top + bottom, image[1] + left + right
