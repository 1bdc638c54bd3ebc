"""plan, sparsify, remask, densify: choose a backend for each layer, say why, put it in, and take it out again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from sparseflow.hardware import backends
from sparseflow.hardware.backends import Cost
from sparseflow.hardware.layers import SparseLayer
from sparseflow.hardware.measure import measure
from sparseflow.hardware.optimizers import check_optimizer, mixes_elements, rebind, refuse_mixing
from sparseflow.hardware.sample import Sample, Seen, observe
from sparseflow.hardware.swap import Site, Survey, geometry_of, put, survey, to_dense, to_sparse
from sparseflow.hardware.workload import Kind, Workload


@dataclass(frozen=True)
class Candidate:
    """One backend for one layer: its cost in seconds a step, or why it cannot run."""

    backend: str
    cost: Cost | None
    reason: str | None

    def to_json(self) -> dict[str, object]:
        """Plain data; `seconds` is the sum over the parts of the cost."""
        return {**asdict(self), "seconds": None if self.cost is None else self.cost.seconds}


@dataclass(frozen=True)
class Row:
    """What was chosen for one weight, and what the alternatives would have cost."""

    name: str
    shape: tuple[int, ...]
    density: float
    backend: str
    layout: str
    reason: str
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Which backend runs each layer, and why. State of a run: recorded once, replayed on resume and on every rank."""

    rows: tuple[Row, ...]
    left_dense: Mapping[str, str]

    def row(self, name: str) -> Row:
        """The row of a weight. `ValueError` where the plan does not know it."""
        for row in self.rows:
            if row.name == name:
                return row
        raise ValueError(f"the plan has no layer {name!r}; it knows: {', '.join(row.name for row in self.rows)}")

    @property
    def backends(self) -> dict[str, str]:
        """Weight name → backend."""
        return {row.name: row.backend for row in self.rows}

    def to_json(self) -> dict[str, object]:
        """Plain data for `result.json`, checkpoints and tickets."""
        rows = [{**asdict(row), "candidates": [one.to_json() for one in row.candidates]} for row in self.rows]
        return {"rows": json.loads(json.dumps(rows)), "left_dense": dict(self.left_dense)}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Plan:
        """The inverse of `to_json`. `ValueError` for anything else."""
        try:
            rows = tuple(_row(row) for row in data["rows"])  # type: ignore[attr-defined]
            left = {str(key): str(value) for key, value in data["left_dense"].items()}  # type: ignore[attr-defined]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"expected a plan as written by sparseflow, got something else ({error!r})") from None
        return cls(rows, left)

    def __str__(self) -> str:
        lines = [_line("layer", "density", "backend", "why")]
        for row in self.rows:
            lines.append(_line(row.name, f"{row.density:.2%}", row.backend, row.reason))
            lines.extend(_candidate_line(candidate) for candidate in row.candidates)
        lines.extend(_line(name, "100%", "(dense)", reason) for name, reason in self.left_dense.items())
        return "\n".join(lines)


def plan(model: nn.Module, masks: Mapping[str, Tensor], sample: Sample | None = None, backend: str = "auto") -> Plan:
    """Runs the model once on the sample, times the candidates of each masked layer on this machine, and chooses.

    `sample` is a tensor, tuple or dict as the model's forward takes it, of the size that training will use. The
    model is not changed: RNGs, buffers and modes are restored. With a backend's name nothing is timed, and the
    sample may be left out. `ValueError` for masks that do not fit the model.
    """
    if backend == "auto" and sample is None:
        raise ValueError(
            'backend="auto" needs to see the model run: pass sample= (an input batch) or plan= (from sf.plan), '
            f"or name a backend: {', '.join(backends.available())}"
        )
    found = survey(model)
    sites = {name: found.find(name, tuple(mask.shape)) for name, mask in masks.items()}
    kinds: dict[str, tuple[Kind, list[nn.Module]]] = {
        name: (geometry_of(site.module).kind, site.modules) for name, site in sites.items()
    }
    seen = {name: Seen() for name in sites} if sample is None else observe(model, sample, kinds)
    timed: dict[Workload, tuple[Candidate, ...]] = {}
    rows = []
    for name, site in sites.items():
        work = _workload(site, masks[name], seen[name])
        if backend == "auto":
            # Layers of one shape and about one density share a timing.
            key = replace(work, density=float(f"{work.density:.1e}"))
            if key not in timed:
                timed[key] = _candidates(key)
            rows.append(_choose(name, work, timed[key]))
        else:
            rows.append(_named(name, work, backend))
    return Plan(tuple(rows), found.left_dense)


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
    sites = {name: found.find(name, tuple(mask.shape)) for name, mask in masks.items()}
    already = [name for name, site in sites.items() if isinstance(site.module, SparseLayer)]
    if already:
        raise ValueError(f"already sparse: {', '.join(already)}; use remask for new masks, or densify first")
    for name, mask in masks.items():
        if mask.dtype != torch.bool:
            raise ValueError(f"mask {name!r}: expected a bool tensor (True = kept), got {mask.dtype}")
    if optimizer is not None:
        check_optimizer(optimizer, model)
    chosen = plan if plan is not None else _plan(model, masks, sample, backend)
    _check_runnable(chosen, sites, masks, optimizer)
    for name, mask in masks.items():
        row = chosen.row(name)
        model = put(model, sites[name], to_sparse(sites[name], mask, row.backend, row.layout, optimizer))
    return model


def remask(model: nn.Module, masks: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None = None) -> nn.Module:
    """The sparse model with new masks for the layers named; weights kept by both masks stay, new ones start at zero.

    Values, gradients' owners and every optimizer tensor follow: new.pack_values(old.unpack_values(t)). A layer
    whose number of values stays the same keeps its Parameter.
    """
    found = survey(model)
    layers = {name: _sparse_site(found, name, mask) for name, mask in masks.items()}
    if optimizer is not None:
        check_optimizer(optimizer, model)
    for name, mask in masks.items():
        _remask_site(layers[name], mask, optimizer)
    return model


def densify(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> nn.Module:
    """The model with its original classes again, in place; zeros at pruned places."""
    if optimizer is not None:
        check_optimizer(optimizer, model)
    for site in survey(model).sites.values():
        if isinstance(site.module, SparseLayer):
            model = put(model, site, to_dense(site, optimizer))
    return model


def _sparse_site(found: Survey, name: str, mask: Tensor) -> Site:
    site = found.find(name, tuple(mask.shape))
    if not isinstance(site.module, SparseLayer):
        raise ValueError(f"{name!r} is dense; sparsify it before remask")
    if mask.dtype != torch.bool:
        raise ValueError(f"mask {name!r}: expected a bool tensor (True = kept), got {mask.dtype}")
    return site


def _remask_site(site: Site, mask: Tensor, optimizer: torch.optim.Optimizer | None) -> None:
    first = site.module
    assert isinstance(first, SparseLayer)
    old_op, old_values = first.op, first.values
    new_op = first.repack(mask)

    def move(tensor: Tensor) -> Tensor:
        return new_op.pack_values(old_op.unpack_values(tensor))

    first.install(new_op, move(old_values.detach()))
    first.values.grad = None
    for other in site.modules[1:]:
        assert isinstance(other, SparseLayer)
        other.values = first.values
        other.install(new_op, first.values.detach())
    if optimizer is not None:
        rebind(optimizer, old_values, first.values, move)


def _check_runnable(
    chosen: Plan,
    sites: Mapping[str, Site],
    masks: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer | None,
) -> None:
    for name, site in sites.items():
        row = chosen.row(name)
        reason = backends.get(row.backend).unsupported(_workload(site, masks[name], Seen()))
        if reason is not None:
            raise ValueError(f"backend {row.backend!r} cannot run {name!r}: {reason}")
        if optimizer is not None and mixes_elements(optimizer):
            refuse_mixing(optimizer, row.backend)


def _workload(site: Site, mask: Tensor, seen: Seen) -> Workload:
    weight = site.weight
    shape = site.shape[::-1] if site.transposed else site.shape
    return Workload(
        shape=tuple(shape),
        geometry=geometry_of(site.module),
        rows=seen.rows,
        image=seen.image,
        dtype=weight.dtype,
        compute_dtype=seen.dtype if seen.rows else weight.dtype,
        device=weight.device,
        density=int(mask.sum()) / mask.numel(),
        needs_dx=seen.needs_dx,
        threads=torch.get_num_threads(),
    )


def _candidates(work: Workload) -> tuple[Candidate, ...]:
    names = backends.available()
    reasons = {name: backends.get(name).unsupported(work) for name in names}
    able = {name: backends.get(name) for name in names if reasons[name] is None}
    if not able:
        raise ValueError("no backend can run this layer: " + "; ".join(f"{n}: {r}" for n, r in reasons.items()))
    costs = measure(able, work) if work.rows else {name: backend.cost(work) for name, backend in able.items()}
    return tuple(Candidate(name, costs.get(name), reasons[name]) for name in names)


def _choose(name: str, work: Workload, candidates: tuple[Candidate, ...]) -> Row:
    costs = {candidate.backend: candidate.cost for candidate in candidates if candidate.cost is not None}
    order = sorted(costs, key=lambda backend: costs[backend].seconds)
    best = order[0]
    how = "measured" if costs[best].measured else "modelled"
    reason = f"{how} {_time(costs[best].seconds)} a step"
    if len(order) > 1:
        ratio = costs[order[1]].seconds / costs[best].seconds
        reason += f", {ratio:.2f}x faster than {order[1]}"
    layout = backends.get(best).layout(work)
    return Row(name, work.shape, work.density, best, layout, reason, candidates)


def _named(name: str, work: Workload, backend: str) -> Row:
    return Row(name, work.shape, work.density, backend, backends.get(backend).layout(work), "named by the caller")


def _row(data: Mapping[str, object]) -> Row:
    row = Row(**data)  # type: ignore[arg-type]
    candidates = tuple(
        Candidate(c["backend"], None if c["cost"] is None else Cost(**c["cost"]), c["reason"])  # type: ignore[index]
        for c in row.candidates
    )
    return replace(row, shape=tuple(row.shape), candidates=candidates)


def _line(name: str, density: str, backend: str, why: str) -> str:
    return f"{name:<40} {density:>8}  {backend:<14} {why}"


def _candidate_line(candidate: Candidate) -> str:
    if candidate.cost is None:
        return _line("", "", "  " + candidate.backend, f"cannot run: {candidate.reason}")
    how = "measured" if candidate.cost.measured else "modelled"
    return _line("", "", "  " + candidate.backend, f"{_time(candidate.cost.seconds)} {how}")


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"
