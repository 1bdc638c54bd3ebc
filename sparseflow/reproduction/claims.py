"""The claims of papers that are checked here, a row each, and who checks them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

from sparseflow.reproduction.outcome import Outcome
from sparseflow.reproduction.parts import Part

# Takes seeds; where its claim has a part, what that has found for each of them.
Check = Callable[[Sequence[Any]], Outcome]
_HERE = "sparseflow.reproduction"


@dataclass(frozen=True)
class Claim:
    """One row. `run` names the check, module:function below this package; `needs`: modules that it cannot do without.

    `part` names the training that it judges, a function of one seed; rows without one are exact, and done in seconds.
    """

    row: str
    paper: str
    check: str
    tolerance: str
    run: str
    seeds: tuple[int, ...] = (1, 2, 3)
    part: str = ""
    needs: tuple[str, ...] = ()

    @property
    def fast(self) -> bool:
        """Whether it trains nothing on Fashion-MNIST."""
        return not self.part

    @property
    def missing(self) -> list[str]:
        """What it needs and is not there: with any of it, the row stays open."""
        return [name for name in self.needs if not _exists(name)]

    def load(self) -> Check:
        """The function that checks it."""
        return cast(Check, _load(self.run))

    def load_part(self) -> Part | None:
        """What is measured for each seed, if anything is."""
        return cast(Part, _load(self.part)) if self.part else None


def find_claims(rows: Sequence[str]) -> list[Claim]:
    """The claims of those rows, `7` for `7a` and `7b` together; all without any. `ValueError` for an unknown row."""
    if not rows:
        return list(CLAIMS)
    found = [claim for row in rows for claim in CLAIMS if row in (claim.row, claim.row.rstrip("ab"))]
    unknown = [row for row in rows if not any(row in (claim.row, claim.row.rstrip("ab")) for claim in CLAIMS)]
    if unknown:
        raise ValueError(f"no row {unknown[0]!r} to reproduce; rows: {', '.join(claim.row for claim in CLAIMS)}")
    return found


def _load(path: str) -> object:
    module, _, name = path.partition(":")
    return getattr(import_module(f"{_HERE}.{module}"), name)


def _exists(name: str) -> bool:
    parent = name.rpartition(".")[0]
    return (not parent or _exists(parent)) and importlib.util.find_spec(name) is not None


_FMNIST = "LeNet-300-100 on Fashion-MNIST"

CLAIMS = (
    Claim(
        "1",
        "1803.03635: 80.0, 51.3, 21.1, 13.5 and 3.6 % of the weights remain after 1, 3, 7, 9 and 15 rounds",
        "exact counts of rounds 1 to 24; round 7: 49,325, 6,291 and 478",
        "0",
        "searches:schedule",
        seeds=(),
    ),
    Claim(
        "2",
        "1803.03635: survivors go back to θ₀, pruned weights are gone",
        "three rounds by every optimizer",
        "bitwise",
        "searches:invariants",
    ),
    Claim(
        "3",
        "1803.03635: tickets are at least as accurate as the dense network (MNIST)",
        f"{_FMNIST}, ten rounds of 8,000 steps: ticket − dense at 10.8 %",
        "mean ≥ +0.3 points, no seed below −0.3",
        "tickets:ticket_against_dense",
        part="tickets:search",
    ),
    Claim(
        "4",
        "1803.03635: with fresh weights the same mask learns worse and more slowly",
        "ticket − reinit at 10.8 %; early stop",
        "mean ≥ 0.8 points, above 0 in each seed; earlier in two of three",
        "tickets:ticket_against_reinit",
        part="tickets:search",
    ),
    Claim(
        "5",
        "1803.03635: the structure of the mask matters",
        "ticket − shuffled mask at 5.6 %",
        "mean ≥ 1.2 points",
        "tickets:ticket_against_shuffle",
        part="tickets:search",
    ),
    Claim(
        "6",
        "1803.03635: iterative pruning finds smaller tickets than one-shot pruning",
        "iterative − one-shot at 5.6 %",
        "mean ≥ 0.5 points",
        "tickets:iterative_against_one_shot",
        part="tickets:search",
    ),
    Claim(
        "7a",
        "1912.05671: instability is a property of the data order",
        "the same order twice: no barrier",
        "0",
        "stable:same_order",
        part="stable:one_order",
        seeds=(1,),
    ),
    Claim(
        "7b",
        "1912.05671: LeNet is stable at initialisation",
        f"{_FMNIST}, two trainings of 4,000 steps from θ₀",
        "instability < 2 points on test and train",
        "stable:stable_at_init",
        part="stable:orders",
    ),
    Claim(
        "8",
        "1912.05671, 2003.02389: rewinding to k, and of the learning rate alone",
        "k = 0 equals the paper's loop by hand; k = 5 starts at θ₅; learning-rate rewinding keeps θ_T",
        "bitwise",
        "searches:rewinding",
    ),
    Claim(
        "9",
        "2009.08576: shuffling the mask does not hurt what is pruned at initialisation",
        f"{_FMNIST}, 4,000 steps: SNIP at 10 %, SynFlow at 5 %",
        "|mean| ≤ 0.7 points",
        "at_init:shuffling",
        part="at_init:shuffled",
    ),
    Claim(
        "10a",
        "1810.02340, eq. 4: the score is what the loss does when the weight goes",
        "central differences",
        "1e-5, relative",
        "at_init:snip_differences",
    ),
    Claim(
        "10b",
        "1810.02340: pruned at initialisation, LeNet keeps its accuracy with few weights",
        f"{_FMNIST}, 4,000 steps: SNIP − random uniform mask at 5 %",
        "above 0 in each seed",
        "at_init:snip_against_random",
        part="at_init:over_random",
    ),
    Claim(
        "11",
        "2002.07376: the weights that lower the gradient norm most by going stay",
        "central differences of ½|g|², with the sign",
        "1e-5, relative",
        "at_init:grasp_differences",
    ),
    Claim(
        "12",
        "2006.05467: synaptic flow is conserved, and no layer collapses before it must",
        "layer sums against R; 100 prunings to 10^-2 and 10^-4.25; a single one to 10^-2",
        "1e-12; connected; cut",
        "at_init:synflow_conserves",
        seeds=(0,),
    ),
    Claim(
        "13",
        "1911.11134: density of a layer ∝ (in + out) / (in · out)",
        "LeNet at 10, 5, 2 and 1 %, and the mean",
        "1e-9",
        "at_init:erk",
        seeds=(),
    ),
    Claim(
        "14",
        "1911.13299: random networks hold good ones, untrained",
        f"{_FMNIST} at 50 %, 800 steps; weights untouched",
        "≥ 75 % in each seed",
        "strong:edge_popup",
        part="strong:popped_up",
        needs=("sparseflow.training.strong_ticket",),
    ),
    Claim(
        "15",
        "2410.14754, theorem 2: n ≥ c log₂(k/ε) / H₂(k/n) numbers have k that add up",
        "200 trials, ε = 0.01, k = 2 and 3, ratios 0.7, 1.0, 1.4 and 2.0",
        "≤ 0.2; 0.2 to 0.5; ≥ 0.85; ≥ 0.98",
        "strong:subset_sums",
        seeds=(0,),
        needs=("sparseflow.theory",),
    ),
    Claim(
        "16",
        "2410.14754, theorem 3: the width that holds a ticket of a density",
        "the fixed point's residual, order and values for 100×100",
        "1e-9",
        "strong:planner",
        seeds=(),
        needs=("sparseflow.theory",),
    ),
    Claim(
        "17",
        "2504.12801: Sign-In recovers from a < 0 < w iff its condition on β holds",
        "the condition against the integrated flow, 200 draws off a 2 % margin",
        "all",
        "strong:sign_in_toy",
        seeds=(0,),
        needs=("sparseflow.masks.sign_in",),
    ),
    Claim(
        "18",
        "2504.12801, 1905.01067: learned signs carry the ticket, random signs lose it",
        "ticket at 10.8 %: its mask with trained signs and random magnitudes, with trained magnitudes and random signs",
        "the first above the second in each seed",
        "signs:signs_carry",
        part="signs:arms",
    ),
    Claim(
        "19a",
        "2302.11244: L1, L2 and min-max importance do not see a layer's scale",
        "one layer scaled by 7: same masks; magnitude's change",
        "exact",
        "importance:scale",
    ),
    Claim(
        "19b",
        "2302.11244: tickets by magnitude, L1 and L2 overlap little and are as accurate",
        f"{_FMNIST}, ten rounds of 2,000 steps, 10.7 %: accuracy, and overlap against chance",
        "≤ 1.0 points apart; overlap above chance",
        "importance:tickets",
        part="importance:side_by_side",
        seeds=(1,),
    ),
    Claim(
        "20",
        "Muon erases more of the initialisation than Adam",
        "1,000 steps: correlation of the second layer with its start",
        "Muon < 0.75 < Adam",
        "strong:muon_erasure",
        part="strong:remembered",
        needs=("sparseflow.training.muon", "sparseflow.training.erasure"),
    ),
    Claim(
        "21a",
        "1911.11134, 2303.10464: RigL's counts and state, SPDF's densification and FLOPs",
        "laws, each exact",
        "exact",
        "laws:structure",
    ),
    Claim(
        "21b",
        "2303.11525: sparse layers that are wider take the FLOPs of the dense ones",
        "LeNet, parallel, factorised and doped, at 100, 50, 25 and 10 %: FLOPs over dense",
        "exact",
        "laws:iso_flop",
        seeds=(),
        needs=("sparseflow.training.sparse_ift",),
    ),
)
