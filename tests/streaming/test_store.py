"""A store holds what was put in, in memory and on the disk, through masks, commits and rollbacks."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_weights import ADAM, contents, densities, made, random_mask, seeds, shapes, small_tiles
from torch import Tensor

from sparseflow.hardware.streaming import store_parameter
from sparseflow.hardware.streaming.store import Entry, Store
from sparseflow.hardware.streaming.updates import SGD, Adam

WEIGHTS = {"fc.weight": torch.arange(1.0, 61.0).view(6, 10), "fc.bias": torch.arange(6.0)}
MASKS = {"fc.weight": random_mask((6, 10), 0.4, seed=3)}
RULE = Adam(lr=0.1, weight_decay=0.01, decoupled=True)


@pytest.fixture(params=["memory", "disk"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "store" if request.param == "disk" else None


@pytest.fixture
def store(place: Path | None) -> Iterator[Store]:
    with made(place, WEIGHTS, MASKS) as found:
        yield found


def do_step(store: Store) -> None:
    for name in store.names:
        store.update(name, torch.randn(store.nnz(name)), RULE)
    store.end_step()


@given(shapes, densities, seeds)
@settings(deadline=None)
def test_what_comes_in_comes_out(shape: tuple[int, ...], density: float, seed: int) -> None:
    mask, weight = random_mask(shape, density, seed), torch.randn(shape)
    with small_tiles():
        store = made(None, {"w": weight}, {"w": mask})
        assert torch.equal(store.mask("w"), mask)
        assert torch.equal(store.values("w"), weight[mask])
        assert torch.equal(store.read("w"), weight.where(mask, 0.0))
        assert torch.equal(store.gather("w", 2 * weight), 2 * weight[mask])
        assert store.nnz("w") == int(mask.sum())
        store.write("w", -weight)
        assert torch.equal(store.values("w"), -weight[mask])


@given(shapes, densities, densities, seeds)
@settings(deadline=None)
def test_a_new_mask_moves_values_and_state(shape: tuple[int, ...], before: float, after: float, seed: int) -> None:
    old, new = random_mask(shape, before, seed), random_mask(shape, after, seed + 1)
    weight, mean = torch.randn(shape), torch.randn(shape)
    with small_tiles():
        store = made(None, {"w": weight}, {"w": old}, ("momentum",))
        store.put("w", mean[old], "momentum")
        store.set_steps("w", 5)
        store.remask("w", new)
        assert torch.equal(store.mask("w"), new)
        assert torch.equal(store.read("w"), weight.where(old & new, 0.0))
        assert torch.equal(store.state("w", "momentum"), mean.where(old, 0.0)[new])
        assert store.steps("w") == 5


def test_a_parameter_without_a_mask_is_whole(store: Store) -> None:
    assert torch.equal(store.read("fc.bias"), WEIGHTS["fc.bias"])
    assert store.mask("fc.bias").all() and store.nnz("fc.bias") == 6
    assert store.names == ["fc.weight", "fc.bias"]
    assert store.shape("fc.weight") == (6, 10)


def test_weights_may_be_made_one_at_a_time(place: Path | None) -> None:
    def entries() -> Iterator[Entry]:
        for name in ("a", "b"):
            yield Entry(name, (3,), None, lambda: torch.full((3,), 7.0))
        yield Entry("zeros", (2, 2), None, None)

    with Store.create(place, entries()) as store:
        assert [store.read(name).sum().item() for name in store.names] == [21.0, 21.0, 0.0]


def test_reading_into_a_buffer(store: Store) -> None:
    out = torch.full((6, 10), torch.nan)
    assert store.read("fc.weight", out) is out
    assert torch.equal(out, WEIGHTS["fc.weight"].where(MASKS["fc.weight"], 0.0))


def test_writing_and_putting_leave_the_rest(store: Store) -> None:
    do_step(store)
    state = store.state("fc.weight", "exp_avg").clone()
    store.commit()
    store.write("fc.weight", WEIGHTS["fc.weight"])
    assert torch.equal(store.values("fc.weight"), WEIGHTS["fc.weight"][MASKS["fc.weight"]])
    assert torch.equal(store.state("fc.weight", "exp_avg"), state)
    store.commit()
    store.put("fc.weight", state + 1, "exp_avg_sq")
    assert torch.equal(store.state("fc.weight", "exp_avg_sq"), state + 1)
    assert torch.equal(store.state("fc.weight", "exp_avg"), state)


def test_rollback_goes_back_to_the_commit(store: Store) -> None:
    do_step(store)
    store.commit({"epoch": 1})
    committed = contents(store)
    do_step(store)
    store.remask("fc.weight", ~MASKS["fc.weight"])
    do_step(store)
    store.remask("fc.weight", MASKS["fc.weight"])
    store.write("fc.bias", torch.zeros(6))
    assert contents(store) != committed
    store.rollback()
    assert contents(store) == committed and store.about == {"epoch": 1}
    # The other slot, which holds what was rolled back, is overwritten as a whole.
    do_step(store)
    store.rollback()
    assert contents(store) == committed


def test_committed_slots_are_not_written_to(store: Store) -> None:
    before = {name: store.values(name) for name in store.names}
    copies = {name: values.clone() for name, values in before.items()}
    for _ in range(3):
        do_step(store)
    assert all(torch.equal(before[name], copies[name]) for name in store.names)


def test_opening_gives_the_last_commit(tmp_path: Path) -> None:
    with made(tmp_path / "store", WEIGHTS, MASKS) as store:
        do_step(store)
        store.remask("fc.weight", random_mask((6, 10), 0.2, seed=9))
        store.commit({"seed": 3})
        committed = contents(store)
        do_step(store)
        store.remask("fc.weight", MASKS["fc.weight"])
    with Store.open(tmp_path / "store", {"fc.weight": (6, 10), "fc.bias": (6,)}) as store:
        assert contents(store) == committed
        assert (store.step, store.about) == (1, {"seed": 3})
        # What the last one left without a commit is gone.
        assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [
            "00000-1.tiles",
            "00001-0.tiles",
            "MANIFEST.json",
        ]
        do_step(store)


def test_digest_is_of_names_shapes_and_masks(place: Path | None) -> None:
    store = made(place, WEIGHTS, MASKS)
    digest = store.digest
    do_step(store)
    assert store.digest == digest
    assert made(None, {name: 2 * weight for name, weight in WEIGHTS.items()}, MASKS).digest == digest
    assert made(None, WEIGHTS, {}).digest != digest
    store.remask("fc.weight", ~MASKS["fc.weight"])
    assert store.digest != digest
    store.close()


def test_a_gradient_of_another_length_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match=r"the gradient of fc.bias.*shape \(6,\).*got .* shape \(5,\)"):
        store.update("fc.bias", torch.ones(5), RULE)


def test_a_change_that_was_cut_short_is_not_committed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_parameter, "CHUNK", 2)

    def rule_that_fails(calls: Iterator[int]) -> SGD:
        class Failing(SGD):
            @property
            def keys(self) -> tuple[str, ...]:
                return ADAM

            def __call__(self, values: Tensor, gradient: Tensor, state: Mapping[str, Tensor], step: int) -> None:
                if next(calls) == 1:
                    raise KeyboardInterrupt
                values.zero_()

        return Failing(lr=1.0)

    committed = contents(store)
    # In the other slot, which nobody has read yet, it changes nothing.
    with pytest.raises(KeyboardInterrupt):
        store.update("fc.weight", torch.ones(store.nnz("fc.weight")), rule_that_fails(iter(range(9))))
    store.commit()
    assert contents(store) == committed
    do_step(store)
    with pytest.raises(KeyboardInterrupt):
        store.update("fc.weight", torch.ones(store.nnz("fc.weight")), rule_that_fails(iter(range(9))))
    with pytest.raises(ValueError, match=r"a change of 'fc.weight' was cut short: roll the store back"):
        store.commit()
    store.rollback()
    store.commit()
    assert contents(store) == committed


def test_a_step_takes_no_memory_as_large_as_the_layer(tmp_path: Path, limited_memory: Callable[[int], None]) -> None:
    """Values and two moments of 16 MB each, under a limit of 6 MB beyond what is taken already."""
    weight, gradient = torch.zeros(2000, 2000), torch.ones(4_000_000)
    with made(tmp_path / "store", {"w": weight}, {}) as store:
        store.update("w", gradient, RULE)
        limited_memory(6_000_000)
        with pytest.raises(RuntimeError, match="allocate"):
            torch.empty(4_000_000)
        for _ in range(2):
            store.update("w", gradient, RULE)
            store.commit()
        assert store.steps("w") == 3 and store.values("w").max() < 0


@pytest.fixture
def limited_memory() -> Iterator[Callable[[int], None]]:
    """Bounds what private memory the process may take beyond what it has."""
    before = resource.getrlimit(resource.RLIMIT_DATA)

    def limit(nbytes: int) -> None:
        # What tests before this one freed would be taken again, and not count.
        ctypes.CDLL(None).malloc_trim(0)
        status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        taken = 1024 * int(status["VmData"].split()[0])
        resource.setrlimit(resource.RLIMIT_DATA, (taken + nbytes, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_DATA, before)


@given(st.lists(st.sampled_from(["step", "commit", "rollback", "remask", "reopen"]), max_size=8), seeds)
@settings(max_examples=25, deadline=None)
def test_any_history_is_that_of_a_model_of_it(
    tmp_path_factory: pytest.TempPathFactory, history: list[str], seed: int
) -> None:
    """Against a store in memory of which copies are kept, rather than slots."""
    folder = tmp_path_factory.mktemp("history") / "store"
    store, other = made(folder, WEIGHTS, MASKS), made(None, WEIGHTS, MASKS)
    committed = contents(other)
    for number, event in enumerate(history):
        if event == "step":
            for each in (store, other):
                torch.manual_seed(seed + number)
                do_step(each)
        elif event == "remask":
            for each in (store, other):
                each.remask("fc.weight", random_mask((6, 10), 0.5, seed + number))
        elif event == "commit":
            store.commit()
            other.commit()
            committed = contents(other)
        else:
            other.rollback()
            if event == "rollback":
                store.rollback()
            else:
                store.close()
                store = Store.open(folder)
            assert contents(store) == committed
        assert contents(store) == contents(other)
    store.close()
