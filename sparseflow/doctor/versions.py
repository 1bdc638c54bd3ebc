"""Are the packages that a launch needs here, in versions that work?"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from collections.abc import Callable, Iterable

from packaging.requirements import Requirement
from packaging.version import Version

from sparseflow.doctor.finding import Finding, ok, warning, wrong

# What carries a launch; the report's and the lint's packages are no concern of it.
CARRYING = ("torch", "triton", "accelerate", "deepspeed")
Installed = Callable[[str], str | None]


def requirements() -> list[Requirement]:
    """What this sparseflow asks for, by its installed metadata; nothing where it runs from a bare checkout."""
    try:
        lines = importlib.metadata.requires("sparseflow") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [Requirement(line) for line in lines]


def installed(name: str) -> str | None:
    """The version of a package, None where it is not there; nothing is imported."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_versions(asked: Iterable[Requirement], find: Installed = installed, needs: Iterable[str] = ()) -> Finding:
    """Carrying packages against the ranges asked for. `needs` are the extras whose packages must be there."""
    found: list[str] = []
    for requirement in asked:
        if requirement.name not in CARRYING:
            continue
        place, version = _place(requirement, needs), find(requirement.name)
        if place == "elsewhere" or (version is None and place == "optional"):
            continue
        expected = f"{requirement.name}{requirement.specifier}"
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            return wrong("versions", f"expected {expected}, found {version or 'none'}; pip install '{expected}'")
        found.append(f"{requirement.name} {version}")
    if not found:
        return warning("versions", "sparseflow is not installed as a package, so nothing says which versions it needs")
    return ok("versions", ", ".join(found))


def check_torch(version: str | None) -> Finding | None:
    """A torch whose checkpoint reader can be made to run code, whatever the range asked for says."""
    if version is None or Version(version) >= Version("2.10"):
        return None
    return wrong(
        "torch",
        f"expected torch>=2.10, found {version}: reading a checkpoint can run code (CVE-2026-24747); upgrade torch",
    )


def check_timm(is_there: Callable[[str], bool] | None = None) -> Finding | None:
    """timm without torchvision breaks `accelerate launch`, which imports timm where it is installed."""
    there = is_there or (lambda name: importlib.util.find_spec(name) is not None)
    if not there("timm") or there("torchvision"):
        return None
    return wrong(
        "timm",
        "timm is installed and torchvision, which it imports, is not: `accelerate launch` ends with "
        "ModuleNotFoundError; install torchvision, or uninstall timm",
    )


def check_compiler(which: Callable[[str], str | None] = shutil.which) -> Finding:
    """DeepSpeed compiles a small op when it first starts on a machine."""
    place = which("g++") or which("c++")
    if place is None:
        return wrong("compiler", "expected g++, with which DeepSpeed compiles an op at its first start, found none")
    return ok("compiler", f"{place}, for the op that DeepSpeed compiles at its first start on a machine")


def _place(requirement: Requirement, needs: Iterable[str]) -> str:
    """Whether a requirement is "needed", "optional" (of an extra that is not needed) or for machines "elsewhere"."""
    marker = requirement.marker
    if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *needs)):
        return "needed"
    return "optional" if "extra" in str(marker) else "elsewhere"
