"""The speed table: what counts as met, how samples are taken, and one micro network through all of it."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparseflow.bench import Figure, clock, memory_cgroup, networks, pruning, run_bench, streaming
from sparseflow.bench import run as bench_run
from sparseflow.bench.criteria import over_passes, synflow_seconds
from sparseflow.bench.mapped_torch import MappedTraining
from sparseflow.bench.memory import bytes_kept, memory_over_dense
from sparseflow.bench.networks import Case
from sparseflow.bench.peers import MISSING, CsrLinear, csr_step, disagreement
from sparseflow.bench.pruning import Kind
from sparseflow.bench.saving import saving
from sparseflow.bench.search import Round, searches, totals
from sparseflow.bench.step import Step, dense_steps, masked_model, sparse_step
from sparseflow.bench.stream_worker import Count
from sparseflow.bench.streaming import count, in_memory
from sparseflow.bench.versus_dense import Promise, break_even, speedups, with_break_even
from sparseflow.bench.versus_peers import against_peers, peers
from sparseflow.hardware.model import sparse_layers
from sparseflow.testing import assert_close
from sparseflow.training.proof import ProofError
from sparseflow.training.sensitivity import snip

BACKEND = "dense-compact"
WORDS = ("dense", "90% sparse")


@pytest.fixture(autouse=True)
def short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_SAMPLE", 1e-4)


@pytest.fixture
def micro() -> Case:
    return networks.mlp("micro", (16, 32, 8), batch=4, threads=1)


@pytest.fixture
def lone_conv() -> Case:
    x, dy = torch.randn(2, 3, 5, 5, requires_grad=True), torch.randn(2, 4, 5, 5)
    return Case("conv", lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False)), x, dy, 1)


def test_a_criterion_is_measured_against_its_passes() -> None:
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)), (torch.randn(9, 8), torch.arange(9) % 3)
    for grows in (False, True):
        found = over_passes(model, data, grows)
        assert found.check == "ok" and len(found.samples) == clock.REPEATS and min(found.samples) > 0
    found = synflow_seconds(model, inputs=8, repeats=2)
    assert found.check == "ok" and found.limit == 10 and 0 < max(found.samples) < 10


def test_scores_that_are_wrong_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparseflow.bench.criteria.snip", lambda *arguments: snip(*arguments[:2], wrong_loss))
    model, data = nn.Sequential(nn.Linear(8, 3)), (torch.randn(9, 8), torch.arange(9) % 3)
    assert over_passes(model, data).verdict == "wrong result"


def wrong_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return 2 * nn.functional.cross_entropy(output, target)


def figure(samples: tuple[float, ...], limit: float | None = 2.0, at_least: bool = True) -> Figure:
    return Figure("a step", "x", limit, at_least, samples, aim=3.0)


def test_a_floor_is_missed_where_the_upper_quartile_is_below_it() -> None:
    assert figure((1.0, 1.5, 1.9, 2.1, 2.2)).verdict == "met"
    assert figure((1.0, 1.5, 1.7, 1.9, 9.0)).verdict == "missed"
    assert figure((1.0, 2.1, 2.2, 2.3, 2.4), at_least=False).verdict == "missed"
    assert figure((1.0, 1.9, 2.2, 2.3, 2.4), at_least=False).verdict == "met"
    assert figure((0.1,), limit=None).verdict == "no promise"


def test_a_line_shows_median_quartiles_floor_aim_and_verdict() -> None:
    line = str(figure((1.0, 2.0, 3.0, 4.0, 5.0)))
    assert " ".join(line.split()) == "a step 3.000 [2.000, 4.000] x ≥ 2 aim 3 met"


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    absent = Figure("a peer", "x", 2.5, True, (), absent=MISSING)
    assert absent.verdict == "not measured" and not absent.missed
    assert str(absent).endswith("not installed: pip install 'sparseflow[bench]'")


def test_a_wrong_result_is_missed_and_shows_no_number() -> None:
    wrong = Figure("a step", "x", 2.5, True, (), "gradients differ")
    assert wrong.missed and str(wrong).endswith("WRONG RESULT: gradients differ")


def test_sides_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_SAMPLE", 1e-12)
    calls: list[str] = []
    sides: dict[str, Callable[[], object]] = {name: lambda name=name: calls.append(name) for name in "ab"}  # type: ignore[misc]
    seconds = clock.take_turns(sides, repeats=3)
    assert calls == [*"aabb", *"ababab"]
    assert [len(seconds[name]) for name in "ab"] == [3, 3]


def test_a_sample_lasts_long_enough_for_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def step() -> None:
        nonlocal now
        now += 0.02

    monkeypatch.setattr(clock, "_SAMPLE", 0.05)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    (seconds,) = clock.take_turns({"step": step}, repeats=1)["step"]
    # Two warm-ups, then three calls, of which the mean is told.
    assert round(now / 0.02) == 5 and math.isclose(seconds, 0.02)


def test_break_even_interpolates_time_in_density() -> None:
    # Ours over dense: 1.25 at 60 % of the weights, 0.75 at 40 %; 1 lies half way.
    assert break_even({40: 0.8, 60: 4 / 3, 90: 5.0}) == pytest.approx(50)
    assert break_even({40: 1.1, 60: 1.5}) == 40
    assert break_even({40: 0.5, 60: 0.9}) == 100


@given(st.floats(0.01, 2.0), st.floats(0.0, 0.5))
@settings(max_examples=30, deadline=None)
def test_break_even_finds_where_a_linear_cost_crosses(slope: float, fixed: float) -> None:
    sparsities = (40, 60, 80, 90, 99)
    found = break_even({s: 1 / (fixed + slope * (1 - s / 100)) for s in sparsities})
    crossing = 100 * (1 - (1 - fixed) / slope)
    assert found == pytest.approx(crossing, abs=1e-6) if crossing > 40 else found == 40


def test_random_masks_are_exact_and_prune_the_model(micro: Case) -> None:
    model, masks = masked_model(micro, 0.1)
    assert masks.kept == {"0.weight": 51, "2.weight": 26}
    assert {name: int((model.get_parameter(name) != 0).sum()) for name in masks} == masks.kept


def test_a_step_trains_every_parameter_and_leaves_fresh_gradients(micro: Case) -> None:
    step = sparse_step(micro, 0.5, BACKEND)
    step()
    first = [parameter.grad.clone() for parameter in step.parameters if parameter.grad is not None]
    before = [parameter.detach().clone() for parameter in step.parameters]
    step()
    assert len(first) == 4
    for parameter, old, gradient in zip(step.parameters, before, first):
        assert not torch.equal(parameter, old)
        # At this learning rate a gradient stays what it was, unless it adds up.
        assert parameter.grad is not None
        assert (parameter.grad - gradient).norm() < gradient.norm() / 2


def test_images_meet_dense_in_both_memory_formats(lone_conv: Case) -> None:
    steps = dense_steps(lone_conv)
    for step in steps.values():
        step()
    last = steps["dense channels_last"]
    for tensor in (last.x, last.target, last.parameters[0]):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    gradients = [step.parameters[0].grad for step in steps.values()]
    inputs = [step.x.grad for step in steps.values()]
    for one, other in (gradients, inputs):
        assert one is not None and other is not None
        assert_close(one, other)


def test_speed_and_break_even_of_a_micro_network(micro: Case) -> None:
    figures = with_break_even(micro, Promise({90: 1e-9}, {90: 5.0}), BACKEND, low=(50,), high=(90,))
    assert [figure.verdict for figure in figures[:2]] == ["no promise", "met"]
    assert (figures[2].limit, figures[2].at_least, figures[2].unit) == (55, False, "% sparse")
    assert figures[1].name == "micro, 1 thread, 90 % sparse: dense / ours"
    assert [len(figure.samples) for figure in figures] == [clock.REPEATS] * 3
    assert figures[1].seconds.keys() == {"dense", "ours"}
    assert figures[1].samples[3] == figures[1].seconds["dense"][3] / figures[1].seconds["ours"][3]


@pytest.mark.parametrize(("dense", "channels_last", "speedup"), [(4.0, 6.0, 2.0), (6.0, 5.0, 2.5)])
def test_the_better_dense_layout_is_the_opponent(
    lone_conv: Case, monkeypatch: pytest.MonkeyPatch, dense: float, channels_last: float, speedup: float
) -> None:
    seconds = {"dense": (dense,) * 7, "dense channels_last": (channels_last,) * 7, "ours": (2.0,) * 7}
    monkeypatch.setattr(
        "sparseflow.bench.versus_dense.take_turns", lambda sides: {side: seconds[side] for side in sides}
    )
    (figure,) = speedups(lone_conv, Promise(), BACKEND, (50,))
    assert figure.samples == (speedup,) * 7 and figure.seconds == seconds


def test_a_wrong_step_is_not_timed(micro: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: nn.Module, sample: object) -> None:
        raise ProofError("the gradient of 0.weight differs")

    monkeypatch.setattr("sparseflow.bench.step.prove_equal_to_dense", wrong)
    for figure in with_break_even(micro, Promise(), BACKEND, low=(50,), high=(90,)):
        assert figure.verdict == "wrong result" and figure.samples == () and "0.weight" in str(figure)
    assert memory_over_dense(micro, BACKEND).verdict == "wrong result"


def test_csr_computes_what_dense_does_and_trains_only_biases(micro: Case) -> None:
    step = csr_step(micro, 0.5)
    assert disagreement(step, micro, 0.5) == "ok"
    assert disagreement(step, micro, 0.4).startswith("its output differs")
    step()
    layers = [module for module in step.model if isinstance(module, CsrLinear)]  # type: ignore[attr-defined]
    trained = [parameter for group in step.optimizer.param_groups for parameter in group["params"]]  # type: ignore[union-attr]
    assert [id(layer.bias) for layer in layers] == [id(parameter) for parameter in trained]
    # What makes it slow: torch gives a dense gradient.
    assert all(layer.weight.grad is not None and layer.weight.grad.layout == torch.strided for layer in layers)


def test_peers_are_timed_beside_ours(micro: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparseflow.bench.versus_peers.sparseprop_installed", lambda: False)
    (figure,) = against_peers(micro, BACKEND, (50,))
    assert figure.name == "micro, 50 % sparse: torch CSR / ours"
    assert figure.seconds.keys() == {"csr", "ours"} and len(figure.samples) == clock.REPEATS


def test_a_peer_is_held_to_its_better_number_of_threads(micro: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"csr": (6.0,) * 7, "csr on 1 thread": (5.0,) * 7, "ours": (2.0,) * 7}
    monkeypatch.setattr(
        "sparseflow.bench.versus_peers.take_turns", lambda sides: {side: seconds[side] for side in sides}
    )
    monkeypatch.setattr("sparseflow.bench.versus_peers.sparseprop_installed", lambda: False)
    (figure,) = against_peers(replace(micro, threads=2), BACKEND, (50,))
    assert figure.samples == (2.5,) * 7 and figure.seconds == seconds


def test_a_wrong_peer_is_not_measured(micro: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparseflow.bench.versus_peers.sparseprop_installed", lambda: False)
    monkeypatch.setattr("sparseflow.bench.versus_peers.csr_step", lambda case, density: csr_step(case, density / 2))
    (figure,) = against_peers(micro, BACKEND, (50,))
    assert figure.verdict == "not measured" and "torch CSR is wrong here: its output differs" in str(figure)


def test_a_peer_that_is_not_installed_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("sparseflow.bench.versus_peers.against_peers", lambda *arguments: [])
    (figure,) = peers(BACKEND)
    assert figure.verdict == "not measured" and MISSING in str(figure)


def test_memory_is_counted_from_the_tensors(micro: Case) -> None:
    step = sparse_step(micro, 0.1, BACKEND)
    step()
    # Weights kept and biases, four bytes each: parameter, gradient, two moments; a step count a parameter.
    values = 51 + 26 + 32 + 8
    indices = sum(layer.op.nbytes for layer in sparse_layers(step.model).values())
    assert bytes_kept(step) == 4 * 4 * values + 4 * 4 + indices


def test_memory_over_dense_is_one_count(micro: Case) -> None:
    ours, dense = sparse_step(micro, 0.1, BACKEND), dense_steps(micro)["dense"]
    ours()
    dense()
    assert bytes_kept(dense) == 4 * 4 * (16 * 32 + 32 + 32 * 8 + 8) + 4 * 4
    assert memory_over_dense(micro, BACKEND).samples == (bytes_kept(ours) / bytes_kept(dense),)


def test_totals_make_every_step_of_a_round_like_its_kth() -> None:
    rounds = [Round(10.0, (1.0, 2.0)), Round(20.0, (4.0, 3.0))]
    assert totals(rounds, 3) == (10 + 2 * 1 + 20 + 2 * 4, 10 + 2 * 2 + 20 + 2 * 3)


def test_searches_go_on_side_by_side(micro: Case) -> None:
    figures = searches(micro, {1: 0.5, 2: 0.5}, steps=4, backend=BACKEND)
    assert [figure.limit for figure in figures] == [0.5, None, 0.5, None]
    for figure in figures:
        # The first of four steps belongs to the time outside.
        assert len(figure.samples) == 3
        assert figure.seconds.keys() == {"dense", "ours"}
    assert all(a < b for a, b in zip(figures[0].seconds["ours"], figures[2].seconds["ours"]))


def test_groups_run_alone_and_are_plain_data(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {
        "mlp": ("MLPs", lambda: [figure((1.0, 1.0, 1.0))]),
        "imp": ("IMP", lambda: [Figure("search", "x", 1.0, True, (), absent="not here")]),
        "conv": ("Convolutions", lambda: [figure((5.0,))]),
    }
    monkeypatch.setattr(bench_run, "GROUPS", groups)
    shown: list[str] = []
    found = json.loads(json.dumps(run_bench(["mlp", "imp"], shown.append)))
    assert found["text"] == "\n".join(shown)
    assert [(one["group"], one["verdict"], one["missed"]) for one in found["figures"]] == [
        ("mlp", "missed", True),
        ("imp", "not measured", False),
    ]
    assert found["figures"][0]["samples"] == [1.0, 1.0, 1.0]
    assert "1 missed, 1 not measured" in shown[-1]
    assert {"cores", "caches", "torch", "threads", "load_before", "load_after"} <= found["machine"].keys()


def test_a_group_begins_without_timings_of_earlier_plans(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Path] = []

    def measure() -> list[Figure]:
        seen.append(Path(os.environ["SPARSEFLOW_CACHE_DIR"]))
        assert not list(seen[-1].iterdir())
        (seen[-1] / "timings.json").touch()
        return []

    monkeypatch.setattr(bench_run, "GROUPS", {"one": ("One", measure), "two": ("Two", measure)})
    monkeypatch.setenv("SPARSEFLOW_CACHE_DIR", str(tmp_path))
    run_bench()
    assert os.environ["SPARSEFLOW_CACHE_DIR"] == str(tmp_path) and not list(tmp_path.iterdir())
    assert len({*seen, tmp_path}) == 3 and not any(folder.exists() for folder in seen)


def test_an_unknown_group_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"no group 'mpl' in the bench; choose from: foundation, .*mlp"):
        run_bench(["mpl"])


def test_the_sides_are_the_same_network(micro: Case) -> None:
    ours, dense = sparse_step(micro, 1.0, BACKEND), dense_steps(micro)["dense"]
    assert isinstance(ours, Step)
    assert_close(ours.model(micro.x), dense.model(micro.x))


@pytest.mark.parametrize("kind", ["tensors", "slices"])
def test_pruning_is_timed_against_torch_and_its_masks_compared(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "_REPEATS", 2)
    monkeypatch.setattr(pruning, "_LAYER", (200, 100))
    peaks = iter(["1.5", "2.5"])
    monkeypatch.setattr(pruning, "fresh_process", lambda *_: next(peaks))
    speed, memory = pruning.prune_globally(kind, 60_000, faster=0.0, peak=3)
    assert speed.check == "ok" and speed.verdict == "met" and len(speed.samples) == 2
    assert memory.samples == (1.5, 2.5) and memory.verdict == "met"
    monkeypatch.setitem(pruning.PRUNERS, kind, lambda weights: pruning.prune_tensors(weights, density=0.3))
    (wrong,) = pruning.prune_globally(kind, 60_000, faster=0.0, peak=3)
    assert wrong.verdict == "wrong result"


def test_peak_memory_of_pruning_is_about_its_masks() -> None:
    assert 0.8 < float(clock.fresh_process(pruning._PEAK, "slices", "20000000")) < 3


def test_a_commit_is_timed_against_torch_save(tmp_path: Path) -> None:
    figures = saving(tmp_path, nbytes=64_000)
    assert [figure.limit for figure in figures] == [1.15, 1.15] and all(figure.samples for figure in figures)
    assert figures[0].seconds.keys() == {"commit", "torch.save, flushed", "torch.save"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_a_model_trains_that_is_larger_than_its_memory() -> None:
    """In a process whose memory is limited; at 90 % sparse, the store moves less than 0.15 of what it would."""
    found = count("stream", 0.1)
    assert found.state >= 4 * found.limit
    assert found.anonymous < found.limit + found.needed
    traffic = found.read + found.written
    assert traffic <= 1.2 * 34 * found.nnz
    assert traffic <= 0.15 * 34 * found.state / 12


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_mapped_torch_goes_through_all_its_state_where_only_private_memory_is_limited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streaming, "memory_cgroup", lambda limit: nullcontext())
    found = count("mapped", 1.0, steps=1, limit=32 * 2**20)
    assert found.under == "RLIMIT_DATA" and found.state >= 4 * found.limit
    # A weight forward, it and both moments backward, for what was dropped between layers comes from the disk again; but
    # the first layer's weight comes once, since its input needs no gradient.
    assert found.from_disk >= (16 / 12) * found.state - 4 * 1024**2 - 2**20
    assert found.to_disk >= found.state


def test_mapped_torch_is_torch(tmp_path: Path) -> None:
    plain, model = networks.mlp("m", (6, 5, 4), batch=3).build(), networks.mlp("m", (6, 5, 4), batch=3).build()
    weights = iter([parameter.detach().clone() for parameter in plain.parameters()])

    def initialise(module: nn.Module) -> None:
        for parameter in module.parameters():
            parameter.copy_(next(weights))

    mapped = MappedTraining(model, tmp_path / "mapped", 0.1, initialise)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.1, fused=True)
    for _ in range(3):
        x = torch.randn(3, 6)
        optimizer.zero_grad()
        plain(x).square().mean().backward()
        optimizer.step()
        mapped.step(x)
    for expected, got in zip(plain.parameters(), model.parameters()):
        assert torch.equal(got, expected)
    on_disk = torch.from_file(str(tmp_path / "mapped" / "0.weight.weight"), size=30)
    assert torch.equal(on_disk.view(5, 6), next(plain.parameters()))


@pytest.mark.parametrize("under", ["a memory cgroup", "RLIMIT_DATA"])
def test_times_are_compared_under_a_cgroup_alone(under: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(side: str, density: float, *_: object) -> Count:
        seconds = (4.0,) if side == "mapped" else (2.0,) if density == 1 else (1.0,)
        moved = (0, 0) if side == "mapped" else (200, 120) if density == 1 else (20, 17)
        return Count(10, 40, 10, 1, 1, 1, *moved, 7, 8, seconds, under)

    monkeypatch.setattr(streaming, "count", counted)
    figures = {figure.name: figure for figure in streaming.larger_than_memory(batch=8)}
    times = [figures[f"b8: dense step of mapped torch / of sf.stream, {what} ({under})"] for what in WORDS]
    if under == "RLIMIT_DATA":
        assert all(figure.verdict == "not measured" for figure in times)
    else:
        assert [(figure.samples, figure.verdict) for figure in times] == [((2.0,) * 3, "met"), ((4.0,) * 3, "missed")]
    assert figures["b8: store's bytes of a step, 90 % sparse / dense"].samples == (37 / 320,)


def test_no_cgroup_where_none_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A plain folder, which has no file that would limit anything, and one that is not there.
    places = [(1, tmp_path), (2, tmp_path / "absent")]
    monkeypatch.setattr(memory_cgroup, "_places", lambda: iter(places))
    with memory_cgroup.memory_cgroup(2**20) as found:
        assert found is None
    assert not list(tmp_path.iterdir())


def test_a_streamed_step_is_timed_beside_a_dense_one(micro: Case) -> None:
    assert len(in_memory(micro, 0.5).samples) == clock.REPEATS
