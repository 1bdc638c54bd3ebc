"""The two machines, each number with the source that it was read in.

What a source does not say is marked as assumed there, with what was assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


class Sourced(float):
    """A number that knows where it was read: a float in every formula."""

    source: str

    def __new__(cls, value: float, source: str) -> Sourced:
        """`source` names the document, or begins with "assumed" or "derived" and says from what."""
        number = super().__new__(cls, value)
        number.source = source
        return number

    def __reduce__(self) -> tuple[type[Sourced], tuple[float, str]]:
        return Sourced, (float(self), self.source)


@dataclass(frozen=True)
class System:
    """One machine. Bytes, seconds, hertz, watts and bits a second; a FMAC is a multiplication and an addition.

    `cores` are those that a program can be given. `io_bits` is the rate of the wafer's ports in each direction,
    `store_bytes` the rate at which the store of the weights reads and writes them while the optimizer runs.
    """

    name: str
    wafer: str
    cores: Sourced
    core_bytes: Sourced
    clock: Sourced
    fmacs: Sourced
    io_bits: Sourced
    link_bits: Sourced
    store_bytes: Sourced
    spill_bits: Sourced
    wafer_watts: Sourced
    system_watts: Sourced
    hop_joules: Sourced

    @property
    def peak_flops(self) -> float:
        """Operations a second of all cores with 16-bit operands."""
        return 2 * self.cores * self.fmacs * self.clock

    @property
    def numbers(self) -> dict[str, Sourced]:
        """Field → number, with its source."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Sourced)}


_GLOSSARY = "Cerebras glossary (docs.cerebras.net)"
_HOT_CHIPS_34 = "Hot Chips 34 (2022), transcribed slides"
_SAME = "assumed equal to WSE-2's: not disclosed"

CS2 = System(
    name="cs2",
    wafer="WSE-2",
    cores=Sourced(750 * 994, "fabric that the SDK exposes: csl-examples, single-tile-matvec README"),
    core_bytes=Sourced(48_000, "IEEE Micro 43(3), retold: 8 banks of 6 kB"),
    clock=Sourced(1.1e9, "IEEE Micro 43(3), retold; the SDK's examples convert cycles with 0.85e9"),
    fmacs=Sourced(4, "M. James, Cerebras blog, 2021: 3.4 million 16-bit floating-point units on 850,000 cores"),
    io_bits=Sourced(1.2e12, f"{_GLOSSARY}: 12 ports of 100 GbE; assumed full in each direction at once"),
    link_bits=Sourced(32, "M. James, Cerebras blog, 2021: 38-bit messages, 32 of them data, one a cycle and link"),
    store_bytes=Sourced(150e9, f"{_GLOSSARY}: the store matches the wafer's I/O; assumed the optimizer's rate too"),
    spill_bits=Sourced(1.2e12, "assumed: activations leave and return through the wafer's own ports"),
    wafer_watts=Sourced(15e3, "IEEE Micro 43(3), retold: package power"),
    system_watts=Sourced(23e3, "vendor's data sheet, retold"),
    hop_joules=Sourced(32 * 0.15e-12, f"{_HOT_CHIPS_34}: 0.15 pJ a bit across a die's border, 32 bits"),
)

CS3 = System(
    name="cs3",
    wafer="WSE-3",
    cores=Sourced(900_000 * 745_500 // 850_000, "900,000 cores announced; assumed usable: WSE-2's share of them"),
    core_bytes=Sourced(48_000, "44 GB on 900,000 cores: ALCF user guide; 48 kB a core"),
    clock=Sourced(1.1e9, _SAME),
    fmacs=Sourced(8, "nextplatform.com, 2024: eight-wide SIMD"),
    io_bits=Sourced(1.2e12, "vendor's list: 1.2 Tb/s; assumed full in each direction at once"),
    link_bits=Sourced(32, _SAME),
    store_bytes=Sourced(150e9, _SAME),
    spill_bits=Sourced(1.2e12, _SAME),
    wafer_watts=Sourced(15e3, "announced: the same power as before"),
    system_watts=Sourced(23e3, "announced: the same power as before"),
    hop_joules=Sourced(32 * 0.15e-12, _SAME),
)

SYSTEMS: Mapping[str, System] = {"cs2": CS2, "cs3": CS3}


def find_system(name: str) -> System:
    """The machine of that name; `ValueError` with the choices."""
    if name not in SYSTEMS:
        raise ValueError(f"no system {name!r}; available: {', '.join(SYSTEMS)}")
    return SYSTEMS[name]
