"""The optimizer of a streamed model: torch's interface in front, the update itself in the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.hardware.streaming.scaling import LossScale
from sparseflow.hardware.streaming.spill import Spill
from sparseflow.hardware.streaming.store import Store
from sparseflow.hardware.streaming.systems import Passes, TreeSums
from sparseflow.hardware.streaming.updates import Rule, rule_of

# A state of the store → what torch.optim calls it.
_TORCH_KEYS = {"momentum": "momentum_buffer"}


class StreamedParameter(nn.Parameter):
    """Stands for a parameter of a streamed model: on the meta device, without gradient.

    `taken` says that its gradient of this step has gone to the store already.
    """

    taken: bool

    @property
    def grad(self) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """None. `ValueError` between backward and step, so that nobody takes it for zero."""
        if self.taken:
            raise ValueError(
                "the gradients of a streamed model go to its store as they come, and cannot be read: clip with "
                "optimizer.clip_grad_norm_(max_norm), which needs sf.stream(..., spill=True), and clear with "
                "optimizer.zero_grad()"
            )

    @grad.setter
    def grad(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, gradient: Tensor | None
    ) -> None:
        if gradient is not None:
            raise ValueError("the gradient of a streamed parameter goes to its store, and cannot be set")


def streamed_parameter(parameter: nn.Parameter) -> StreamedParameter:
    """What stands for this parameter."""
    made = StreamedParameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    made.taken = False
    return made


class StoreOptimizer(torch.optim.Optimizer):
    """SGD, Adam or AdamW, run where the weights are.

    With one pass a step, and unless it spills, a gradient is applied as it comes, with the hyper-parameters of that
    moment; `step` then only ends the step. Otherwise gradients are kept, and applied by `step`.
    """

    def __init__(
        self,
        template: torch.optim.Optimizer,
        parameters: Mapping[nn.Parameter, tuple[str, StreamedParameter]],
        store: Store,
        passes: Passes,
        spill: bool,
        scale: LossScale | None,
    ) -> None:
        groups = [{**group, "params": [parameters[p][1] for p in group["params"]]} for group in template.param_groups]
        super().__init__(groups, template.defaults)
        self.passes, self.scale_of_loss = passes, scale
        self._template, self._store = template, store
        self._spill = Spill(store) if spill else None
        self._sums = None if self._spill is None else TreeSums(passes, self._spill)
        self._names = {stand_in: name for name, stand_in in parameters.values()}
        self._stand_ins = {name: stand_in for name, stand_in in parameters.values()}
        # Name → the passes of this step whose gradient has come.
        self._came: dict[str, set[int]] = {}
        self._factor: Tensor | None = None
        # Name → its group, looked up once a step.
        self._groups: dict[str, dict[str, Any]] = {}
        self._trained = {self._names[p] for group in groups for p in group["params"]}

    @property
    def passes_come(self) -> int:
        """How many passes of this step have given a gradient."""
        return len({number for numbers in self._came.values() for number in numbers})

    def trains(self, name: str) -> bool:
        """Whether it holds this parameter, and the parameter is not frozen."""
        return name in self._trained and self._stand_ins[name].requires_grad

    def updated(self, name: str) -> bool:
        """Whether a gradient of this step has changed this parameter already."""
        return self._sums is None and name in self._came

    def forget(self) -> None:
        """Takes all gradients of this step as not come, whether they were applied or kept."""
        self._clear()

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to call backward on: times the loss scale, where the format has one."""
        if self.scale_of_loss is None:
            return loss
        self.scale_of_loss.used = True
        return loss * self.scale_of_loss.value

    def receive(self, name: str, number: int, gradient_Z: Tensor) -> None:
        """Takes the gradient of one parameter from one pass. `ValueError` for a gradient that has come already."""
        came = self._came.setdefault(name, set())
        if number in came or number >= self.passes.count:
            raise ValueError(
                f"a gradient of {name!r} came for pass {len(came) + 1} of a step that has {self.passes.count}: call "
                "optimizer.step() after each step's last backward, or pass sf.stream(..., micro_batches=) the number "
                "of backward passes of a step"
            )
        came.add(number)
        if self._sums is None:
            self._store.update(name, gradient_Z, self._rule(name))
        else:
            self._sums.add(name, number, gradient_Z)
        self._stand_ins[name].taken = True

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Ends a step. Where the gradients were kept, applies them; skips where a scaled one is not finite."""
        if closure is not None:
            raise ValueError("a streamed model's optimizer takes no closure: weights change during backward")
        self._check_passes()
        if self._sums is None or self._apply(self._sums):
            self._store.end_step()
        self._clear()

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Has the next `step` bound the gradients' global norm, which it returns; as torch.nn.utils.clip_grad_norm_.

        `ValueError` where gradients were applied as they came.
        """
        if self._sums is None:
            raise ValueError(
                "clipping by the global norm needs all gradients before the first is applied: pass sf.stream(..., "
                "spill=True), which keeps them on the way"
            )
        norms = [torch.linalg.vector_norm(gradient) for _, gradient in self._totals(self._sums)]
        total = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
        self._factor = torch.clamp(max_norm / (total + 1e-6), max=1.0)
        return total

    @property
    def spills(self) -> bool:
        """Whether gradients are kept until `step`."""
        return self._sums is not None

    def renewed(self, template: torch.optim.Optimizer, scale: LossScale | None) -> StoreOptimizer:
        """One like this for the same parameters, by another template of the same class; its state begins at zero.

        This one is not to be used any more. `ValueError` for a template that needs other state.
        """
        for group in template.param_groups:
            rule = rule_of(template, group)
            for parameter in group["params"]:
                keys = self._store.keys(self._names[parameter])
                if parameter.requires_grad and rule.keys != keys:
                    raise ValueError(
                        f"the store keeps the optimizer state {keys}, and {type(template).__name__} needs {rule.keys}; "
                        "make a new store for it"
                    )
        for name in self._stand_ins:
            if self._store.steps(name):
                for key in self._store.keys(name):
                    self._store.put(name, torch.zeros(self._store.nnz(name)), key)
                self._store.set_steps(name, 0)
        self._clear()
        if self._spill is not None:
            self._spill.close()
        parameters: dict[nn.Parameter, tuple[str, StreamedParameter]] = {
            stand_in: (name, stand_in) for name, stand_in in self._stand_ins.items()
        }
        return StoreOptimizer(template, parameters, self._store, self.passes, self.spills, scale)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients that were kept. `ValueError` where they were applied already and no step followed."""
        if self._came and self._sums is None:
            raise ValueError(
                "these gradients are in the store already: call step() after backward, zero_grad() after step()"
            )
        self._clear()

    def state_dict(self) -> dict[str, Any]:
        """As of the torch optimizer; tensors have the kept values only, in canonical order, and are only to be read."""
        found = super().state_dict()
        names = [self._names[p] for group in self.param_groups for p in group["params"]]
        found["state"] = {i: self._state_of(name) for i, name in enumerate(names) if self._store.steps(name)}
        if self.scale_of_loss is not None:
            found["loss_scale"] = self.scale_of_loss.state_dict()
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave for the same masks; what it has nothing for begins anew."""
        self._groups = {}
        super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        names = [self._names[p] for group in self.param_groups for p in group["params"]]
        for index, name in enumerate(names):
            saved = state_dict["state"].get(index, {})
            for key in self._store.keys(name):
                given = saved.get(_TORCH_KEYS.get(key, key))
                self._store.put(name, torch.zeros(self._store.nnz(name)) if given is None else given, key)
            self._store.set_steps(name, int(saved.get("step", 0)))
        if self.scale_of_loss is not None and "loss_scale" in state_dict:
            self.scale_of_loss.load_state_dict(state_dict["loss_scale"])

    def _state_of(self, name: str) -> dict[str, Tensor]:
        moments = {_TORCH_KEYS.get(key, key): self._store.state(name, key) for key in self._store.keys(name)}
        return {"step": torch.tensor(float(self._store.steps(name))), **moments}

    def _rule(self, name: str) -> Rule:
        if not self._groups:
            self._groups = {self._names[p]: group for group in self.param_groups for p in group["params"]}
        return rule_of(self._template, self._groups[name])

    def _check_passes(self) -> None:
        came = self.passes_come
        if came and came != self.passes.count:
            raise ValueError(
                f"expected {self.passes.count} backward passes before step() ({self.passes.systems} systems with "
                f"{self.passes.micro_batches} micro-batches each), got {came}"
            )
        if came and self.scale_of_loss is not None and not self.scale_of_loss.used:
            raise ValueError("this format needs a scaled loss: call optimizer.scale(loss).backward()")

    def _apply(self, sums: TreeSums) -> bool:
        """Whether the gradients were applied, and not skipped."""
        scale = self.scale_of_loss
        if scale is not None and not all(bool(gradient.isfinite().all()) for _, gradient in self._totals(sums)):
            scale.update(finite=False)
            return False
        for name, gradient in self._totals(sums):
            self._store.update(name, gradient if self._factor is None else gradient * self._factor, self._rule(name))
        if scale is not None:
            scale.update(finite=True)
        return True

    def _totals(self, sums: TreeSums) -> Iterator[tuple[str, Tensor]]:
        # As torch has them, and not as they came, for the order of a norm's additions.
        for name in [name for name in self._stand_ins if name in self._came]:
            total = sums.total(name)
            yield name, total if self.scale_of_loss is None else total / self.scale_of_loss.value

    def _clear(self) -> None:
        for name in self._came:
            self._stand_ins[name].taken = False
            if self._sums is not None:
                self._sums.drop(name)
        self._came, self._factor, self._groups = {}, None, {}
        if self.scale_of_loss is not None:
            self.scale_of_loss.used = False
