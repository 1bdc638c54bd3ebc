"""Where the outputs of layers go in one run: to other layers through element-wise operations alone, or elsewhere.

Element-wise operations keep the strides of a feature-major tensor, forward and backward; whatever else touches it
may need the standard layout. So a layer's output may be feature-major only where nothing else ever sees it.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparseflow.hardware.names import unwrapped
from sparseflow.hardware.survey import extra_padding_of
from sparseflow.hardware.swap import hooked
from sparseflow.hardware.workload import Kind

# Checked on torch 2.13, and again by a test: with a feature-major input, output and gradient are feature-major. The
# last line is what dropout as a function is made of in training, on one device or another.
# fmt: off
ELEMENTWISE = frozenset(
    [
        "abs", "add", "alias", "celu", "clamp", "clone", "detach", "div", "elu", "erf", "exp", "gelu",
        "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish", "mul", "neg", "pow", "relu", "rsub",
        "sigmoid", "silu", "softplus", "sub", "tanh", "_to_copy",
        "bernoulli_", "empty_like", "native_dropout",
    ]
)
# fmt: on
# Autograd detaches what it saves, so these do not say that anybody reads a tensor.
_NO_READING = ("alias", "detach")
# In training, too, a ReLU may stand before or after them alike. Any other module between a layer and its ReLU may be
# the identity only as long as it is not trained.
_COMMUTE_WITH_RELU = (nn.ReLU, nn.Identity, nn.Dropout, nn.Sequential)


@dataclass(frozen=True)
class Flow:
    """Where the outputs of one weight's layers go.

    `feeds`: weights whose layers take them, empty where anything else sees them. `mates`: weights whose outputs are
    combined with them on the way. `sources`: weights from whose outputs alone its own inputs are made. `relus`: the
    nn.ReLU modules that are the only readers, one in every call; empty where a call has another.

    `a & b` is what two runs allow, both of them.
    """

    feeds: frozenset[str] = frozenset()
    mates: frozenset[str] = frozenset()
    sources: frozenset[str] = frozenset()
    relus: tuple[str, ...] = ()

    def __and__(self, other: Flow) -> Flow:
        return Flow(
            self.feeds | other.feeds if self.feeds and other.feeds else frozenset(),
            self.mates | other.mates,
            self.sources | other.sources if self.sources and other.sources else frozenset(),
            tuple(sorted({*self.relus, *other.relus})) if self.relus and other.relus else (),
        )


# With slots, the object itself and no dict of it is what refers to the tensor.
@dataclass(eq=False, slots=True)
class _Made:
    """A tensor made element-wise from outputs of layers. Kept alive, so that its id stays its own."""

    tensor: Tensor
    kind: Kind
    origins: frozenset[str]
    # The name of each nn.ReLU that read it, and "" for each other reader.
    readers: list[str] = field(default_factory=list)
    # Somebody besides the readers could tell whether it is rectified.
    observed: bool = False


@dataclass
class _Site:
    """What was seen of one weight."""

    uncalled: set[nn.Module]
    # Hooks on a layer see its output as it is.
    hooked: bool
    feeds: set[str] = field(default_factory=set)
    mates: set[str] = field(default_factory=set)
    inputs: list[frozenset[str]] = field(default_factory=list)
    outputs: list[_Made] = field(default_factory=list)
    broken: bool = False


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the outputs of layers through the model's code while it is active. Layers themselves are opaque.

    `layers` gives the kind and all modules of each weight.
    """

    def __init__(self, layers: Mapping[str, tuple[Kind, list[nn.Module]]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._owners: dict[nn.Module, tuple[str, Kind]] = {
            module: (name, kind) for name, (kind, modules) in layers.items() for module in modules
        }
        self._sites = {name: _Site(set(modules), any(map(hooked, modules))) for name, (_, modules) in layers.items()}
        self._made: dict[int, _Made] = {}
        self._inside_layer = False
        self._relu: tuple[str, Tensor] | None = None

    @contextlib.contextmanager
    def hooks(self, model: nn.Module) -> Iterator[None]:
        """Watches the calls of the model's modules inside."""
        handles = []
        for path, module in model.named_modules():
            if module in self._owners:
                handles.append(module.register_forward_pre_hook(self._enter_layer, with_kwargs=True))
                handles.append(module.register_forward_hook(self._leave_layer))
                continue
            if hooked(module):
                handles.append(module.register_forward_hook(self._leave_hooked))
            enter = self._enter_other(module, unwrapped(path))
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def flows(self, output: object) -> dict[str, Flow]:
        """What was seen of each weight, once the model has returned its output."""
        self._note_what_is_kept(output)
        self._spread()
        return {
            name: Flow(
                frozenset() if site.broken else frozenset(site.feeds),
                frozenset(site.mates),
                self._sources(site),
                _relus(site),
            )
            for name, site in self._sites.items()
        }

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else the first operation imports all of torch._dynamo, which takes seconds.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self._inside_layer:
            self._follow(func.name().removeprefix("aten::").partition(".")[0], (args, kwargs), result)
        return result

    def _enter_layer(self, module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        name, kind = self._owners[module]
        (x,) = (*inputs, *named.values())
        made = self._made.get(id(x))
        self._sites[name].inputs.append(made.origins if made else frozenset())
        if made is not None:
            made.readers.append("")
            for origin in made.origins:
                self._sites[origin].feeds.add(name)
            # A layer that pads its own input hands on a copy.
            if made.kind != kind or extra_padding_of(module) is not None:
                self._break(made.origins)
        self._inside_layer = True

    def _leave_layer(self, module: nn.Module, inputs: object, y: Tensor) -> None:
        self._inside_layer = False
        name, kind = self._owners[module]
        site, made = self._sites[name], _Made(y, kind, frozenset([name]))
        site.uncalled.discard(module)
        site.outputs.append(made)
        self._made[id(y)] = made

    def _enter_other(
        self, module: nn.Module, name: str
    ) -> Callable[[nn.Module, tuple[object, ...], dict[str, object]], None]:
        # Hooks on a ReLU see its input as it is.
        is_relu, opaque = type(module) is nn.ReLU, hooked(module) or not _commutes_with_relu(module)

        def hook(module: nn.Module, inputs: tuple[object, ...], named: dict[str, object]) -> None:
            for x in _tensors((inputs, named)):
                if id(x) in self._made and opaque:
                    self._made[id(x)].observed = True
                elif is_relu:
                    self._relu = name, x

        return hook

    def _leave_hooked(self, module: nn.Module, inputs: object, output: object) -> None:
        for y in _tensors(output):
            if id(y) in self._made:
                self._made[id(y)].observed = True

    def _follow(self, op: str, arguments: object, result: Any) -> None:
        read = [self._made[id(tensor)] for tensor in _tensors(arguments) if id(tensor) in self._made]
        if not read:
            return
        name, x = self._relu or ("", None)
        reader = name if op in ("relu", "relu_") and read[0].tensor is x else ""
        for made in read:
            if op in _NO_READING:
                made.observed = True
            else:
                made.readers.append(reader)
        origins = frozenset[str]().union(*(made.origins for made in read))
        if op == "native_dropout":
            # Its mask is for autograd alone.
            result, _ = result
        if not _keeps_strides(op, arguments, read, result):
            self._break(origins)
            return
        for origin in origins:
            self._sites[origin].mates |= origins - {origin}
        assert isinstance(result, Tensor)
        self._made[id(result)] = made = _Made(result, read[0].kind, origins)
        if op in _NO_READING:
            # Whoever reads the one reads the other.
            made.readers = read[0].readers

    def _break(self, origins: Iterable[str]) -> None:
        for origin in origins:
            self._sites[origin].broken = True

    def _note_what_is_kept(self, output: object) -> None:
        self._relu = None
        every = {*self._made.values(), *(made for site in self._sites.values() for made in site.outputs)}
        kept = {id(tensor) for tensor in _tensors(output)} | _held_elsewhere(every)
        for made in every:
            made.observed |= id(made.tensor) in kept
            # What nobody reads is kept too, out of Python's sight.
            if id(made.tensor) in kept or not made.readers:
                self._break(made.origins)

    def _spread(self) -> None:
        for site in self._sites.values():
            site.broken |= site.hooked or bool(site.uncalled)
        # What is combined with an output in the standard layout may come out in either.
        while newly := [
            site for site in self._sites.values() if not site.broken and any(self._sites[m].broken for m in site.mates)
        ]:
            for site in newly:
                site.broken = True

    def _sources(self, site: _Site) -> frozenset[str]:
        sources = frozenset[str]().union(*site.inputs)
        if not all(site.inputs) or any(self._sites[source].broken for source in sources):
            return frozenset()
        return sources


def _relus(site: _Site) -> tuple[str, ...]:
    readers = [name for made in site.outputs for name in made.readers]
    if site.hooked or site.uncalled or any(made.observed or len(made.readers) != 1 for made in site.outputs):
        return ()
    return tuple(sorted(set(readers))) if all(readers) else ()


def _commutes_with_relu(module: nn.Module) -> bool:
    # In place, dropout would write into the output that a layer keeps for the backward of its ReLU.
    return type(module) in _COMMUTE_WITH_RELU and not (isinstance(module, nn.Dropout) and module.inplace)


def _held_elsewhere(every: set[_Made]) -> set[int]:
    """Ids of the tensors that objects of other people refer to: lists, dataclasses, modules, closures."""
    tensors = {id(made.tensor): made.tensor for made in every}
    ours = {id(tensors), *map(id, every)}
    referrers = gc.get_referrers(*tensors.values())
    # Frames are those of the caller and of this function: the model's own have returned.
    holders = [one for one in referrers if id(one) not in ours and not isinstance(one, FrameType)]
    return tensors.keys() & set(map(id, gc.get_referents(*holders)))


def _keeps_strides(op: str, arguments: object, read: list[_Made], result: object) -> bool:
    if not {op, op.removesuffix("_")} & ELEMENTWISE or not isinstance(result, Tensor):
        return False
    first, followed = read[0], {id(made.tensor) for made in read}
    formats = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, torch.memory_format)]
    return (
        all(made.kind == first.kind and made.tensor.shape == result.shape for made in read)
        and result.device == first.tensor.device
        and all(one == torch.preserve_format for one in formats)
        and all(_is_vector(tensor, result.shape) for tensor in _tensors(arguments) if id(tensor) not in followed)
    )


def _is_vector(tensor: Tensor, shape: torch.Size) -> bool:
    # An operand with two dimensions of its own could decide on the order of the result's.
    return tensor.shape != shape and sum(size > 1 for size in tensor.shape) <= 1


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
