"""What one check found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["ok", "warning", "wrong"]


@dataclass(frozen=True)
class Finding:
    """A check by name, and one line: what was expected, what was found, what to do where it is not ok."""

    name: str
    status: Status
    text: str

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def ok(name: str, text: str) -> Finding:
    """As it should be."""
    return Finding(name, "ok", text)


def warning(name: str, text: str) -> Finding:
    """May be meant so, or may not."""
    return Finding(name, "warning", text)


def wrong(name: str, text: object) -> Finding:
    """The launch would fail, or train something else; an error's text becomes one line."""
    return Finding(name, "wrong", " ".join(str(text).split()))


def failed(findings: Iterable[Finding]) -> bool:
    """Whether something is wrong."""
    return any(finding.status == "wrong" for finding in findings)


def table(findings: Iterable[Finding]) -> str:
    """A line for each check."""
    return "\n".join(f"{finding.status:<8} {finding.name:<12} {finding.text}" for finding in findings)
