"""Versions that do and do not carry a launch."""

from __future__ import annotations

import pytest
from packaging.requirements import Requirement

from sparseflow.doctor.versions import check_compiler, check_timm, check_torch, check_versions, requirements

ASKED = [
    Requirement("torch>=2.11"),
    Requirement("numpy>=99"),
    Requirement("triton>=3.6; platform_system == 'Plan 9'"),
    Requirement("deepspeed>=0.19; extra == 'deepspeed'"),
]


def test_versions_in_range_are_listed() -> None:
    found = check_versions(ASKED, {"torch": "2.13.0+cpu", "deepspeed": "0.19.8"}.get)
    assert (found.status, found.text) == ("ok", "torch 2.13.0+cpu, deepspeed 0.19.8")


def test_a_package_of_an_extra_may_be_absent_until_it_is_needed() -> None:
    assert check_versions(ASKED, {"torch": "2.11.0"}.get).status == "ok"
    found = check_versions(ASKED, {"torch": "2.11.0"}.get, needs=["deepspeed"])
    assert (found.status, found.text) == (
        "wrong",
        "expected deepspeed>=0.19, found none; pip install 'deepspeed>=0.19'",
    )


@pytest.mark.parametrize("version", ["2.10.1", None])
def test_a_version_out_of_range_is_wrong(version: str | None) -> None:
    found = check_versions(ASKED, {"torch": version}.get)
    assert found.status == "wrong"
    assert f"expected torch>=2.11, found {version or 'none'}; pip install" in found.text


def test_a_version_to_come_is_in_range() -> None:
    assert check_versions(ASKED, {"torch": "2.14.0a0+git123"}.get).status == "ok"


def test_a_bare_checkout_says_that_nothing_is_known() -> None:
    assert check_versions([]).status == "warning"


def test_this_installation_is_fine() -> None:
    assert {requirement.name for requirement in requirements()} >= {"torch", "accelerate", "triton", "deepspeed"}
    assert check_versions(requirements()).status == "ok"


@pytest.mark.parametrize(("version", "bad"), [("2.9.1", True), ("2.10.0", False), ("2.13.0+cpu", False), (None, False)])
def test_a_torch_that_can_run_code_from_a_checkpoint_is_named(version: str | None, bad: bool) -> None:
    found = check_torch(version)
    assert (found is not None) == bad
    assert found is None or "CVE-2026-24747" in found.text


@pytest.mark.parametrize(
    ("there", "bad"), [({"timm"}, True), ({"timm", "torchvision"}, False), ({"torchvision"}, False), (set(), False)]
)
def test_timm_needs_torchvision(there: set[str], bad: bool) -> None:
    found = check_timm(there.__contains__)
    assert (found is not None) == bad
    assert found is None or "install torchvision" in found.text


def test_deepspeed_needs_a_compiler() -> None:
    assert check_compiler({"c++": "/usr/bin/c++"}.get).status == "ok"
    assert check_compiler({}.get).status == "wrong"
