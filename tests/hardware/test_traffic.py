from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from forked import ROOT, run_script
from torch import nn

import sparseflow as sf
from sparseflow.hardware.stored import paper_plan
from sparseflow.hardware.traffic import charge, size

SHAPES = [("0.weight", (65, 129)), ("2.weight", (33, 65))]
PRUNED = 65 * 129 + 33 * 65
KEPT = round(0.1 * 65 * 129) + round(0.1 * 33 * 65)
# Biases, and a head that is not pruned.
OTHER = 65 + 33 + 33 * 10 + 10


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two real ranks found."""
    found: list[dict[str, Any]] = run_script(
        Path(__file__).with_name("traffic_cases.py"), tmp_path_factory.mktemp("ranks")
    )
    return found


@pytest.mark.parametrize("backend", ["dense", "dense-compact", "cpu"])
def test_gradient_bytes_are_those_in_the_buckets_of_ddp(ranks: list[dict[str, Any]], backend: str) -> None:
    values = PRUNED if backend == "dense" else KEPT
    for rank in ranks:
        wire, planned, built = (rank[backend][key] for key in ("wire", "planned", "built"))
        assert wire == {"pruned": 4 * values, "all": 4 * (values + OTHER)}
        for charged in (planned, built):
            assert charged["pruned_gradient_bytes"] == wire["pruned"]
            assert charged["other_gradient_bytes"] == wire["all"] - wire["pruned"]
            # Two ranks: a ring sends everything once.
            assert charged["ddp"]["sent"] == wire["all"]
        # The promise about pruned layers: in proportion to density, and no less than all on `dense`.
        assert wire["pruned"] / (4 * PRUNED) == pytest.approx(built["ratio"])
        assert built["ratio"] == 1.0 if backend == "dense" else built["ratio"] <= 1.1 * 0.1


@pytest.mark.parametrize("backend", ["dense", "dense-compact", "cpu"])
def test_shards_are_those_of_fsdp2(ranks: list[dict[str, Any]], backend: str) -> None:
    largest = max(rank[backend]["shards"] for rank in ranks)
    assert largest == ranks[0][backend]["built"]["fsdp2"]["memory"]["values"]
    assert largest == ranks[0][backend]["planned"]["fsdp2"]["memory"]["values"]
    everything = sum(rank[backend]["shards"] for rank in ranks)
    assert everything == 4 * ((PRUNED if backend == "dense" else KEPT) + OTHER)


class Blocks(nn.Module):
    """Two blocks in a list, and a root with a parameter that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(20, 30, bias=False), nn.Linear(30, 20, bias=False)])
        self.scale = nn.Parameter(torch.ones(7), requires_grad=False)
        self.norm = nn.LayerNorm(20)


def test_equals_a_count_by_hand() -> None:
    found = charge(Blocks(), paper_plan(Blocks(), 0.1, "dense-compact"), 4)
    # 60 values a block, 40 of the norm, 7 that are not trained; 4 bytes each.
    assert (found.pruned_gradient_bytes, found.other_gradient_bytes) == (480, 160)
    assert found.dense_gradient_bytes == 4800 and found.ratio == 0.1
    assert found.ddp.sent == 2 * 3 * 640 // 4
    assert found.ddp.memory == {
        "values": 668,
        "gradients": 640,
        "moments": 1280,
        "indices": 8 * 120,
        "buckets": 640,
    }
    # Shards: 15 values of each block, 5 + 5 of the norm, 2 that are not trained (7 in parts of 2, 2, 2, 1).
    assert found.fsdp2.memory == {
        "values": 4 * 42,
        "gradients": 4 * 40,
        "moments": 2 * 4 * 40,
        "indices": 8 * 120,
        # The root, one block with its gradients, and the next one.
        "gathered": 4 * (47 + 3 * 60),
        "given model": 668,
    }
    # Blocks gathered twice, the root once, gradients scattered once; three quarters leave each rank.
    assert found.fsdp2.sent == 3 * 4 * (2 * 30 + 12 + 40)
    assert found.ddp.kept == 668 + 640 + 1280 + 960 + 640


def test_one_rank_sends_nothing() -> None:
    found = charge(Blocks(), paper_plan(Blocks(), 0.1, "dense"), 1)
    assert found.ddp.sent == found.fsdp2.sent == 0
    assert found.ratio == 1.0


def test_tied_weights_are_charged_once_and_bfloat16_by_half() -> None:
    model = sf.models.gpt(96, context=16, layers=1, heads=2, width=16, tied=True)
    once = sum(parameter.numel() for parameter in model.parameters())
    assert charge(model, paper_plan(model, 1.0, "dense-compact"), 2).ddp.memory["values"] == 4 * once
    half = charge(model.bfloat16(), paper_plan(model, 1.0, "dense-compact"), 2)
    assert half.ddp.memory["values"] == 2 * once
    assert half.ddp.memory["indices"] == 8 * half.pruned_gradient_bytes // 2


@pytest.mark.parametrize("backend", ["dense", "dense-compact", "cpu"])
def test_indices_modelled_are_about_those_that_exist(backend: str) -> None:
    dense = nn.Sequential(nn.Linear(500, 300))
    masks = sf.prune(dense, density=0.1)
    plan = sf.plan(dense, masks, backend=backend)
    modelled = charge(dense, plan, 2).ddp.memory["indices"]
    exist = charge(sf.sparsify(dense, masks, plan=plan), plan, 2).ddp.memory["indices"]
    assert exist / 1.15 <= modelled <= exist * 1.15


def test_says_so_in_words() -> None:
    text = str(charge(Blocks(), paper_plan(Blocks(), 0.1, "dense-compact"), 4096))
    assert (
        "on 4,096 ranks, modelled: gradients of the pruned layers 480 B, 0.1 of those dense; of all else 160 B" in text
    )
    assert "DDP    a rank sends 1.28 kB a step and keeps 4.19 kB: values 668 B" in text
    assert [size(count) for count in (0, 999, 1000, 999_600, 12_345_678_901)] == [
        "0 B",
        "999 B",
        "1 kB",
        "1 MB",
        "12.3 GB",
    ]


def test_bad_input_is_refused() -> None:
    plan = paper_plan(Blocks(), 0.1, "dense")
    with pytest.raises(ValueError, match="world: expected 1 rank or more, got 0"):
        charge(Blocks(), plan, 0)
    with pytest.raises(ValueError, match=r"plan is for another model: it has no layer blocks\.0\.weight, blocks\.1"):
        charge(nn.Sequential(nn.Linear(3, 4)), plan, 2)


def scaling_tables() -> str:
    """The tables of docs/distributed.md."""
    with torch.device("meta"):
        model = sf.models.gpt(50257, context=2048, layers=24, heads=16, width=2048, tied=True)
    worlds = (8, 64, 512, 4096)
    plans = {"none": sf.Plan((), {})}
    plans |= {
        str(density): paper_plan(model, density, "dense-compact") for density in (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
    }
    sent, kept = _heading("sends in a step", worlds), _heading("keeps", worlds)
    for density, plan in plans.items():
        charges = [charge(model, plan, world) for world in worlds]
        pruned = "–" if density == "none" else size(charges[0].pruned_gradient_bytes)
        bills = [charges[0].ddp, charges[-1].ddp, *(one.fsdp2 for one in charges)]
        sent.append(f"| {density} | {pruned} | {' | '.join(size(bill.sent) for bill in bills)} |")
        kept.append(f"| {density} | {pruned} | {' | '.join(size(bill.kept) for bill in bills)} |")
    return "\n".join([*sent, "", *kept, ""])


def _heading(what: str, worlds: tuple[int, ...]) -> list[str]:
    columns = [f"DDP, {worlds[0]} ranks", f"DDP, {worlds[-1]:,}", *(f"FSDP2, {world:,}" for world in worlds)]
    title = f"| density; a rank {what} | gradients of pruned layers | {' | '.join(columns)} |"
    return [title, "|---" * (len(columns) + 2) + "|"]


def test_the_tables_of_the_documentation_are_what_the_model_says() -> None:
    assert scaling_tables() in (ROOT / "docs/distributed.md").read_text()
