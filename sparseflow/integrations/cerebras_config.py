"""The block `sparsity:` of Cerebras configs, read in all its forms and written in one.

Forms, as cerebras.pytorch.sparse.configure takes them: a number; a dict; a list of dicts, of which the first that
matches a parameter counts; `groups` around either, with options under `params`. `type` is an old name of `algorithm`,
`schedule` another of `sparsity`; without an algorithm it is static.
"""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

ALGORITHMS = ("static", "gmp", "set", "rigl")
_NOT_BY_DEFAULT = ("embedding", "norm", "lm_head", "pe_helper")


@dataclass(frozen=True)
class Rule:
    """One group. `sparsity` is a number, a list of numbers (cycling) or a schedule as plain data; `param_filter` are
    globs, None: the default, by name and dimensions. `options` is everything else that the block says.
    """

    algorithm: str
    sparsity: float | tuple[float, ...] | Mapping[str, Any]
    param_filter: tuple[str, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def matches(self, name: str, dimensions: int) -> bool:
        """Whether the rule is for a parameter of that name and number of dimensions."""
        if self.param_filter is None:
            return dimensions > 1 and not any(word in name.lower() for word in _NOT_BY_DEFAULT)
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.param_filter)


def read_sparsity(source: Path | str | float | Mapping[str, Any] | Sequence[Any]) -> tuple[Rule, ...]:
    """The rules of a block, of a config that contains one, or of a YAML file with either, in the order that counts.

    `ValueError` that names what is wrong.
    """
    if isinstance(source, Path | str):
        try:
            source = yaml.safe_load(Path(source).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"{source}: expected a config as YAML, cannot read it: {error}") from None
    return tuple(_rules(_block(source)))


def densities(rules: Sequence[Rule], shapes: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Parameter → density, for those that a rule matches; the first that does counts.

    Cerebras keeps int(density · numel) of them. `ValueError` where a rule has a schedule: it has no one density.
    """
    found = {}
    for name, shape in shapes.items():
        rule = next((rule for rule in rules if rule.matches(name, len(shape))), None)
        if rule is None:
            continue
        if not isinstance(rule.sparsity, float):
            raise ValueError(f"'{name}' has the schedule {rule.sparsity}; expected a constant sparsity")
        found[name] = 1 - rule.sparsity
    return found


def sparsity_block(masks: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """The block under which a trainer keeps these masks as they are: static groups, one for each sparsity."""
    groups: dict[float, list[str]] = {}
    for name, mask in masks.items():
        groups.setdefault(1 - int(mask.sum()) / mask.numel(), []).append(glob.escape(name))
    return [{"algorithm": "static", "sparsity": sparsity, "param_filter": names} for sparsity, names in groups.items()]


def _block(source: Any) -> Any:
    """The block inside a config: at its top, or of a trainer."""
    if isinstance(source, Mapping):
        trainer = source.get("trainer")
        if isinstance(trainer, Mapping) and isinstance(trainer.get("init"), Mapping):
            source = trainer["init"]
        inner = source.get("sparsity")
        # A block has a key of the same name, for the number.
        if isinstance(inner, Mapping | list) and not _is_schedule(inner):
            return inner
        if "model" in source and inner is None:
            raise ValueError("expected a key 'sparsity' in the config, got none: this one trains dense")
    return source


def _is_schedule(value: Any) -> bool:
    """Whether it says how one rule's sparsity changes, rather than what the rules are."""
    if isinstance(value, Mapping):
        return "type" in value and not {"sparsity", "schedule", "algorithm", "groups"} & value.keys()
    return all(isinstance(number, int | float) for number in value)


def _rules(block: Any) -> list[Rule]:
    if isinstance(block, Mapping) and "groups" in block:
        block = block["groups"]
    if isinstance(block, Sequence) and not isinstance(block, str):
        return [rule for one in block for rule in _rules(one)]
    if isinstance(block, bool) or not isinstance(block, int | float | Mapping):
        raise ValueError(f"expected a sparsity, a mapping or a list of mappings, got {block!r}")
    return [_rule({"sparsity": block} if isinstance(block, int | float) else dict(block))]


def _rule(content: dict[str, Any]) -> Rule:
    content |= content.pop("params", None) or {}
    algorithm = str(content.pop("algorithm", None) or content.pop("type", "static")).lower()
    if algorithm not in ALGORITHMS:
        raise ValueError(f"no sparsity algorithm {algorithm!r}; known: {', '.join(ALGORITHMS)}")
    if "schedule" in content:
        if "sparsity" in content:
            raise ValueError("expected 'sparsity' or 'schedule' in a sparsity block, got both")
        content["sparsity"] = content.pop("schedule")
    if "sparsity" not in content:
        raise ValueError(f"expected 'sparsity' in a sparsity block, got {', '.join(content) or 'nothing'}")
    sparsity, patterns = _sparsity(content.pop("sparsity")), content.pop("param_filter", None)
    if isinstance(patterns, str):
        patterns = [patterns]
    if patterns is not None and not (isinstance(patterns, list) and all(isinstance(one, str) for one in patterns)):
        raise ValueError(f"param_filter: expected a glob or a list of globs, got {patterns!r}")
    return Rule(algorithm, sparsity, None if patterns is None else tuple(patterns), content)


def _sparsity(value: Any) -> float | tuple[float, ...] | Mapping[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    numbers = value if isinstance(value, list) else [value]
    if not numbers or not all(isinstance(one, int | float) and 0 <= one < 1 for one in numbers):
        raise ValueError(f"expected a sparsity in [0, 1), a list of them or a schedule, got {value!r}")
    return tuple(map(float, value)) if isinstance(value, list) else float(value)
