"""Every number of the machines and of the kernel says where it comes from."""

import copy
import dataclasses
import pickle

import pytest

from sparseflow.hardware.wafer import SYSTEMS, System, find_system
from sparseflow.hardware.wafer.kernel import Kernel
from sparseflow.hardware.wafer.memory import CODE_BYTES
from sparseflow.hardware.wafer.step import TREE_SECONDS, UPDATE_BYTES
from sparseflow.hardware.wafer.systems import Sourced


@pytest.mark.parametrize("holder", [*SYSTEMS.values(), Kernel()], ids=lambda holder: getattr(holder, "name", "kernel"))
def test_every_number_has_a_source(holder: System | Kernel) -> None:
    for field in dataclasses.fields(holder):
        value = getattr(holder, field.name)
        if field.name not in ("name", "wafer"):
            assert isinstance(value, Sourced), field.name
            assert len(value.source) > 10 and "memory of" not in value.source


def test_numbers_outside_of_the_machines_have_one_too() -> None:
    assert all(number.source.startswith(("assumed", "derived", "calibrated")) for number in _others())


def _others() -> list[Sourced]:
    return [CODE_BYTES, TREE_SECONDS, UPDATE_BYTES]


def test_a_sourced_number_is_a_float_that_survives_copies() -> None:
    clock = find_system("cs2").clock
    for copied in (copy.deepcopy(clock), pickle.loads(pickle.dumps(clock))):
        assert copied == clock == 1.1e9 and copied.source == clock.source
    assert find_system("cs2").numbers.keys() == find_system("cs3").numbers.keys() != set()


def test_peak_is_what_the_cores_of_a_program_reach() -> None:
    # 745,500 cores × 4 FMAC × 2 × 1.1 GHz.
    assert find_system("cs2").peak_flops == pytest.approx(6.56e15, rel=1e-3)


def test_an_unknown_machine_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="no system 'cs1'; available: cs2, cs3"):
        find_system("cs1")
