"""What the sample run sees of chains and of ReLUs, model by model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseflow.hardware.flow import Flow
from sparseflow.hardware.sample import Sample, observe
from sparseflow.hardware.survey import geometry_of, survey


class Model(nn.Module):
    """Three layers of width 4, a ReLU, and a forward to be filled in."""

    def __init__(self, code: Callable[[Model, Tensor], object]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.relu = nn.ReLU()
        self.kept: object = None
        self.holder = SimpleNamespace()
        self.code = code

    def forward(self, x: Tensor) -> object:
        return self.code(self, x)


def flows(model: nn.Module, sample: Sample) -> dict[str, Flow]:
    sites = survey(model).sites
    seen = observe(model, sample, {name: (geometry_of(site.module).kind, site.modules) for name, site in sites.items()})
    return {name: one.flow for name, one in seen.items()}


def flow(code: Callable[[Model, Tensor], object], shape: tuple[int, ...] = (3, 5, 4)) -> Flow:
    """Of the layer `a`."""
    return flows(Model(code), torch.randn(shape))["a.weight"]


def test_an_mlp_is_a_chain_whose_layers_do_their_relus() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 4), nn.ReLU(inplace=True))
    model.append(nn.Linear(4, 4))
    first, second, third = flows(model, torch.randn(3, 4)).values()
    assert first == Flow(feeds=frozenset({"3.weight"}), relus=("1",))
    assert second == Flow(frozenset({"5.weight"}), sources=frozenset({"0.weight"}), relus=("4",))
    assert third == Flow(sources=frozenset({"3.weight"}))


CHAINS: dict[str, Callable[[Model, Tensor], object]] = {
    "relu": lambda m, x: m.b(F.relu(m.a(x))),
    "relu in place": lambda m, x: m.b(m.a(x).relu_()),
    "gelu by hand": lambda m, x: m.b((y := m.a(x)) * 0.5 * (1 + torch.tanh(0.8 * (y + 0.04 * torch.pow(y, 3.0))))),
    "scalars": lambda m, x: m.b(1 - 2 * m.a(x) / 3 + torch.tensor(2.0)),
    "a bias": lambda m, x: m.b(torch.ones(4) * m.a(x)),
    "dropout as a function": lambda m, x: m.b(F.dropout(m.a(x), 0.5, m.training)),
    "dropout of one kernel": lambda m, x: m.b(torch.native_dropout(m.a(x), 0.5, m.training)[0]),
    "a cast": lambda m, x: m.b(m.a(x).double().float()),
    "detached": lambda m, x: m.b(m.a(x).detach()),
    "in a list": lambda m, x: m.b([m.a(x)][0]),
}


@pytest.mark.parametrize("name", CHAINS)
def test_chains(name: str) -> None:
    assert flow(CHAINS[name]) == Flow(feeds=frozenset({"b.weight"}))


def test_a_residual_add_of_two_outputs_is_a_chain() -> None:
    def code(m: Model, x: Tensor) -> Tensor:
        h = F.gelu(m.a(x))
        return m.c(h + m.b(h))

    seen = flows(Model(code), torch.randn(3, 4))
    assert seen["a.weight"] == Flow(feeds=frozenset({"b.weight", "c.weight"}), mates=frozenset({"b.weight"}))
    assert seen["b.weight"].mates == {"a.weight"} and seen["b.weight"].feeds == {"c.weight"}
    assert seen["c.weight"].sources == {"a.weight", "b.weight"}


@dataclass
class Result:
    """A class that pytree does not know."""

    pre: Tensor
    y: Tensor


# Outside of any model.
TAPS: list[Tensor] = []


def kept(y: Tensor, wanted: bool = True) -> Tensor:
    if wanted:
        TAPS.append(y)
    return y


@pytest.fixture(autouse=True)
def no_taps() -> Iterator[None]:
    yield
    TAPS.clear()


NO_CHAINS: dict[str, Callable[[Model, Tensor], object]] = {
    "returned": lambda m, x: m.a(x),
    "returned in a dict": lambda m, x: {"y": m.b(y := m.a(x)), "features": [y]},
    "returned in a class of the user": lambda m, x: Result(y := m.a(x), m.b(y)),
    "returned in a namespace": lambda m, x: SimpleNamespace(pre=(y := m.a(x)), y=m.b(y)),
    "returned in a closure": lambda m, x: (lambda y: (m.b(y), lambda: y))(m.a(x)),
    "kept": lambda m, x: m.b(setattr(m, "kept", [y := m.a(x)]) or y),
    "kept in an object of the model": lambda m, x: m.b(setattr(m.holder, "kept", y := m.a(x)) or y),
    "kept outside": lambda m, x: m.b(kept(m.a(x))),
    "kept in training": lambda m, x: m.b(kept(m.a(x), m.training)),
    "view in training": lambda m, x: m.b(m.a(x).view(-1, 4) if m.training else m.a(x)),
    "with a broken one in training": lambda m, x: m.c(m.a(x) + (y := m.b(x))) + (y if m.training else 0),
    "not used": lambda m, x: (m.a(x), m.b(x))[1],
    "view": lambda m, x: m.b(m.a(x).view(-1, 4)),
    "flatten": lambda m, x: m.b(m.a(x).flatten(0, 1)),
    "norm": lambda m, x: m.b(F.layer_norm(m.a(x), (4,))),
    "softmax": lambda m, x: m.b(m.a(x).softmax(-1)),
    "transposed": lambda m, x: m.b(m.a(x).transpose(1, 2).transpose(1, 2)),
    "matrix product": lambda m, x: m.b(m.a(x) @ torch.ones(4, 4)),
    "summed beside": lambda m, x: m.b(y := m.a(x)) + y.sum(),
    "looked into": lambda m, x: m.b(y) if (y := m.a(x)).amax() else y,
    "standard layout": lambda m, x: m.b(x + m.a(x)),
    "standard layout in place": lambda m, x: m.b(x.clone().add_(m.a(x))),
    "a table": lambda m, x: m.b(m.a(x) + torch.ones(5, 4)),
    "another shape": lambda m, x: m.b(m.a(x) + torch.ones(2, 1, 1, 1)),
    "another format": lambda m, x: m.b(m.a(x).clone(memory_format=torch.contiguous_format)),
    "one of two calls": lambda m, x: m.b(m.a(x)) + m.a(x),
    "with a broken one": lambda m, x: m.c(m.a(x) + (y := m.b(x))) + y,
}


@pytest.mark.parametrize("name", NO_CHAINS)
def test_no_chains(name: str) -> None:
    seen = flow(NO_CHAINS[name])
    assert seen.feeds == set() and seen.relus == ()


def test_a_sample_of_one_row_shows_no_less() -> None:
    assert flow(lambda m, x: m.b(x + m.a(x)), (1, 4)).feeds == set()


def test_an_input_that_comes_from_elsewhere_too_is_not_chained() -> None:
    seen = flows(Model(lambda m, x: m.b(m.a(x)) + m.b(x)), torch.randn(3, 4))
    assert seen["a.weight"].feeds == {"b.weight"} and seen["b.weight"].sources == set()


RELUS: dict[str, tuple[Callable[[Model, Tensor], object], tuple[str, ...]]] = {
    "the module": (lambda m, x: m.relu(m.a(x)), ("relu",)),
    "then a view": (lambda m, x: m.relu(m.a(x)).view(-1), ("relu",)),
    "both calls": (lambda m, x: m.relu(m.a(m.relu(m.a(x)))), ("relu",)),
    "the function": (lambda m, x: m.b(torch.relu(m.a(x))), ()),
    "after another step": (lambda m, x: m.relu(m.a(x) + 1), ()),
    "in one call of two": (lambda m, x: m.relu(m.a(m.a(x))), ()),
    "beside another reader": (lambda m, x: m.relu(y := m.a(x)) + y.exp(), ()),
    "beside a detached copy": (lambda m, x: (m.relu(y := m.a(x)), y.detach()), ()),
    "beside a return": (lambda m, x: (m.relu(y := m.a(x)), y), ()),
    "beside an attribute": (lambda m, x: m.relu(setattr(m, "kept", y := m.a(x)) or y), ()),
    "beside an attribute of an object": (lambda m, x: m.relu(setattr(m.holder, "kept", y := m.a(x)) or y), ()),
    "beside a list outside": (lambda m, x: m.relu(kept(m.a(x))), ()),
    "beside a field": (lambda m, x: Result(y := m.a(x), m.relu(y)), ()),
    "beside a name": (lambda m, x: SimpleNamespace(pre=(y := m.a(x)), y=m.relu(y)), ()),
    "the output kept": (lambda m, x: kept(m.relu(m.a(x))), ("relu",)),
    "beside a penalty in training": (lambda m, x: (m.relu(y := m.a(x)), y.abs().sum() if m.training else 0), ()),
    "after a step in training": (lambda m, x: m.relu(m.a(x).mul_(torch.ones(4)) if m.training else m.a(x)), ()),
    "dropout after": (lambda m, x: F.dropout(m.relu(m.a(x)), 0.5, m.training), ("relu",)),
}


@pytest.mark.parametrize("name", RELUS)
def test_relus(name: str) -> None:
    code, relus = RELUS[name]
    assert flow(code).relus == relus


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x) if self.training else x


class Softer(nn.ReLU):
    pass


BETWEEN: list[tuple[nn.Module, bool]] = [
    (nn.Dropout(), True),
    (nn.Dropout(inplace=True), False),
    # Its p may be raised later.
    (nn.Dropout(0.0, inplace=True), False),
    (Noise(), False),
    (nn.AlphaDropout(), False),
]


@pytest.mark.parametrize(("module", "fused"), BETWEEN)
def test_what_is_the_identity_only_in_eval_mode_may_stand_between(module: nn.Module, fused: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), module, nn.ReLU())
    assert bool(flows(model, torch.randn(3, 4))["0.weight"].relus) == fused


def test_nothing_is_chained_or_fused_where_training_fails_on_the_sample() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.BatchNorm1d(4))
    assert flows(model, torch.randn(2, 4))["0.weight"] == Flow(frozenset({"2.weight"}), relus=("1",))
    assert set(flows(model, torch.randn(1, 4)).values()) == {Flow()}


def test_two_runs_together_allow_what_both_do() -> None:
    a, b, c = (frozenset({name}) for name in "abc")
    both = Flow(a, a, a, ("r",)) & Flow(b, b, b, ("q",))
    assert both == Flow(a | b, a | b, a | b, ("q", "r"))
    assert Flow(a, b, c, ("r",)) & Flow() == Flow() & Flow(a, b, c, ("r",)) == Flow(mates=b)


def test_only_the_class_itself_is_a_relu() -> None:
    for act in (Softer(), nn.ReLU6()):
        assert flows(nn.Sequential(nn.Linear(4, 4), act), torch.randn(3, 4))["0.weight"].relus == ()


@pytest.mark.parametrize("hook", ["register_forward_hook", "register_full_backward_hook"])
def test_hooks_see_the_output_as_it_was(hook: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    handle = getattr(model[0], hook)(lambda *_: None)
    assert flows(model, torch.randn(3, 4))["0.weight"] == Flow()
    handle.remove()
    getattr(model[1], hook)(lambda *_: None)
    assert flows(model, torch.randn(3, 4))["0.weight"].relus == ()


def test_hooks_on_a_parent_see_the_output_of_its_last_layer() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.ReLU())
    assert flows(model, torch.randn(3, 4))["0.0.weight"].relus == ("1",)
    model[0].register_forward_hook(lambda *_: None)
    assert flows(model, torch.randn(3, 4))["0.0.weight"].relus == ()


def test_a_weight_of_which_a_layer_was_not_called_is_left_alone() -> None:
    model = Model(lambda m, x: m.c(m.relu(m.a(x))))
    model.b.weight = model.a.weight
    assert flows(model, torch.randn(3, 4))["a.weight"] == Flow()


def test_convolutions_chain_with_convolutions_only() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.ReLU(), nn.MaxPool2d(2))
    model.extend([nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"), nn.Flatten()])
    model.append(nn.Linear(27, 3))
    first, second, pooled, padding, last = flows(model, torch.randn(2, 2, 10, 10)).values()
    assert first == Flow(feeds=frozenset({"2.weight"}), relus=("1",))
    assert second == Flow(sources=frozenset({"0.weight"}), relus=("3",))
    assert pooled == padding == last == Flow()


def test_a_convolution_and_a_linear_layer_are_no_chain() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(8, 4))
    assert flows(model, torch.randn(2, 2, 10, 10))["0.weight"] == Flow()


def test_autocast_of_the_caller_keeps_chains() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        assert flows(model, torch.randn(3, 4))["0.weight"].feeds == {"2.weight"}


def test_a_compiled_model_shows_its_chains() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    compiled = torch.compile(model, backend=lambda graph, inputs: pytest.fail("compiled for a sample run"))
    assert flows(compiled, torch.randn(3, 4))["0.weight"] == Flow(frozenset({"2.weight"}), relus=("1",))
