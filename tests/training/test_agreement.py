"""Ranks speak at the same steps, however often they evaluate."""

from __future__ import annotations

import time

import pytest
import torch
from threaded import together
from torch import nn

from sparseflow.hardware.plan import sparsify
from sparseflow.ranks import ALONE, Ranks, RanksDifferError
from sparseflow.training.agreement import Pulse, check_structure


def test_one_process_asks_itself_after_each_step() -> None:
    pulse = Pulse(ALONE)
    assert all(pulse.due(done) for done in range(1, 5))
    assert pulse(1, True, False) == (True, False) and pulse(2, False, True) == (False, True)


def test_ranks_speak_at_the_same_steps_ever_less_often() -> None:
    def steps(ranks: Ranks) -> list[int]:
        pulse, spoken = Pulse(ranks), []
        for done in range(1, 2001):
            if pulse.due(done):
                pulse(done, False, False)
                spoken.append(done)
        return spoken

    first, *others = together(3, steps)
    assert isinstance(first, list) and all(other == first for other in others)
    assert first[:3] == [1, 3, 7] and len(first) < 100


def test_frequent_evaluations_do_not_keep_the_ranks_from_speaking() -> None:
    """At each evaluation they speak too; steps of 5 ms make 50 of a quarter of a second."""

    def longest(ranks: Ranks) -> int:
        pulse = Pulse(ranks)
        for done in range(1, 91):
            time.sleep(0.005)
            if pulse.due(done) or done % 5 == 0:
                pulse(done, False, False)
        return next(done for done in range(91, 1000) if pulse.due(done))

    assert together(2, longest)[0] in range(91, 150)


def test_one_rank_stops_all_and_rank_0_alone_says_when_to_save() -> None:
    assert together(2, lambda ranks: Pulse(ranks)(5, ranks.rank == 1, ranks.rank == 1)) == [(True, False)] * 2
    assert together(2, lambda ranks: Pulse(ranks)(5, False, ranks.main)) == [(False, True)] * 2


def test_ranks_at_different_steps_stop() -> None:
    found = together(2, lambda ranks: Pulse(ranks)(5 + ranks.rank, False, False))
    assert all(isinstance(error, RanksDifferError) for error in found)


@pytest.mark.parametrize("differing", [False, True])
def test_masks_that_differ_are_noticed(differing: bool) -> None:
    def check(ranks: Ranks) -> None:
        mask = torch.ones(4, 4, dtype=torch.bool)
        mask[0, ranks.rank if differing else 0] = False
        check_structure(sparsify(nn.Sequential(nn.Linear(4, 4)), {"0.weight": mask}, backend="dense-compact"), ranks)

    found = together(2, check)
    assert all(isinstance(error, RanksDifferError) == differing for error in found)
