"""Sizes of tiles, which a plan's text may name, are checked before a kernel trusts them."""

from __future__ import annotations


def check_powers(config: object, *names: str) -> None:
    """`ValueError` unless these fields of a configuration are 1, 2, 4, ..."""
    for name in names:
        number = getattr(config, name)
        if number < 1 or number & (number - 1):
            raise ValueError(f"{name}: expected 1, 2, 4, ..., got {number}")


def check_least(config: object, least: int, *names: str) -> None:
    """`ValueError` unless these fields of a configuration are that much or more."""
    for name in names:
        number = getattr(config, name)
        if number < least:
            raise ValueError(f"{name}: expected {least} or more, got {number}")
