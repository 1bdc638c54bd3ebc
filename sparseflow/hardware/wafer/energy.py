"""Joules of a step, to ± 30 %. Modelled: only the link's energy and the machines' power are published."""

from __future__ import annotations

from dataclasses import dataclass

from sparseflow.hardware.wafer.systems import System

SPREAD = 0.3


@dataclass(frozen=True)
class Energy:
    """Joules: of the wafers, of which `fabric` is hops between cores, and of all else in the machines."""

    wafers: float
    fabric: float
    rest: float

    @property
    def joules(self) -> float:
        """All of it."""
        return self.wafers + self.rest

    @property
    def between(self) -> tuple[float, float]:
        """The least and the most that it may be."""
        return (1 - SPREAD) * self.joules, (1 + SPREAD) * self.joules


def energy(system: System, seconds: float, systems: int, hops: float) -> Energy:
    """The machines at their published power for so many seconds; `hops` are one system's wavelets between cores."""
    wafers = systems * seconds * system.wafer_watts
    rest = systems * seconds * (system.system_watts - system.wafer_watts)
    return Energy(wafers, systems * hops * system.hop_joules, rest)
