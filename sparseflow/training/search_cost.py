"""What finding a ticket cost, and what the ticket saves: in FLOPs, which are counted, and in seconds.

A ticket of iterative pruning at round r was found by the trainings of rounds 0 to r − 1; one that is pruned at
initialisation, or whose masks change while it trains, by none. What criteria look at between trainings is not counted:
at most a few hundred passes over a batch; nor are the dense gradients of RigL, once in many steps. Controls are not
part of a search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sparseflow.hardware.flops import LayerFlops, example_flops, step_flops

# What is on record of one trained network: see `records.describe`.
Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Spent:
    """FLOPs of the prunable layers' products (see `hardware.flops`), and seconds with evaluations. None: not known."""

    flops: float | None
    seconds: float | None

    def __add__(self, other: Spent) -> Spent:
        return Spent(_both(self.flops, other.flops, 1), _both(self.seconds, other.seconds, 1))

    def __sub__(self, other: Spent) -> Spent:
        return Spent(_both(self.flops, other.flops, -1), _both(self.seconds, other.seconds, -1))

    def __truediv__(self, other: Spent) -> Spent:
        """The ratios; None where there is nothing, or less, to divide by."""
        return Spent(_ratio(self.flops, other.flops), _ratio(self.seconds, other.seconds))


@dataclass(frozen=True)
class SearchCost:
    """One seed's ticket. `search`: finding it; `dense`: a whole training of the dense network; `ticket`: its own.

    `inference`: FLOPs of a forward pass over those of the dense network.
    """

    seed: int
    round: int
    search: Spent
    dense: Spent
    ticket: Spent
    inference: float

    @property
    def in_dense_trainings(self) -> Spent:
        """How many dense trainings the search was worth."""
        return self.search / self.dense

    @property
    def saved(self) -> Spent:
        """What one more training saves, in dense trainings: below zero where the ticket is slower."""
        return (self.dense - self.ticket) / self.dense

    @property
    def pays_after(self) -> Spent:
        """After how many trainings of the ticket the search is paid for. None: never, for it saves nothing."""
        return self.search / (self.dense - self.ticket)

    def to_json(self) -> dict[str, Any]:
        """Plain data, with what follows from it."""
        derived = (self.in_dense_trainings, self.saved, self.pays_after)
        names = ("in_dense_trainings", "saved", "pays_after")
        return {**asdict(self), **{name: asdict(one) for name, one in zip(names, derived)}}


def training_cost(network: Metrics, layers: Mapping[str, LayerFlops], counted: bool = True) -> Spent:
    """One training on record. `counted`: whether its density was the same in all steps; else its FLOPs are unknown."""
    flops = network["steps"] * step_flops(layers, network["kept"], network["total"]) if counted else None
    return Spent(flops, network["seconds"])


def search_cost(
    trained: Sequence[Metrics], number: int, steps: int, layers: Mapping[str, LayerFlops], dynamic: bool, settled: bool
) -> SearchCost:
    """The cost of one seed's ticket of round `number`. `trained`: what is on record of its rounds.

    `steps`: of a dense training. `dynamic`: masks change in round 1, and `settled`: its density does not.
    """
    (ticket,) = (one for one in trained if one["round"] == number)
    total = ticket["total"]
    whole = [one for one in trained if one["round"] == 0]
    dense = Spent(steps * step_flops(layers, total, total), whole[0]["seconds"] if whole else None)
    search = Spent(0.0, 0.0)
    for one in trained:
        if one["round"] < number and not dynamic:
            search += training_cost(one, layers)
    return SearchCost(
        seed=ticket["seed"],
        round=number,
        search=search,
        dense=dense,
        ticket=training_cost(ticket, layers, counted=settled),
        inference=example_flops(layers, ticket["kept"], total) / example_flops(layers, total, total),
    )


def _both(a: float | None, b: float | None, sign: int) -> float | None:
    return None if a is None or b is None else a + sign * b


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b is not None and b > 0 else None
