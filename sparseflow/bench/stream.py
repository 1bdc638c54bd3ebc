"""`sparseflow bench --backend stream`: what the machine model says of a workload, and of what was published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from sparseflow.bench.stream_validation import markdown, validation
from sparseflow.hardware.wafer import Prediction, Transformer, predict_training
from sparseflow.hardware.wafer.words import describe, to_json


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Dimensions(_Strict):
    """A transformer; see `wafer.Transformer`."""

    blocks: int
    width: int
    sequence: int
    vocabulary: int
    mlp: int = 0
    kv_width: int = 0
    gated: bool = False


class StreamWorkload(_Strict):
    """What a workload's file says; see `wafer.predict_training`."""

    model: Dimensions
    batch: int
    system: str = "cs2"
    systems: int = 1
    density: float = 1.0
    densest: float | None = None
    micro_batch: int | None = None

    def predict(self) -> Prediction:
        """The step that the machine model expects. `ValueError` as there."""
        return predict_training(
            Transformer(**self.model.model_dump()),
            self.batch,
            self.system,
            density=self.density,
            systems=self.systems,
            micro_batch=self.micro_batch,
            densest=self.densest,
        )


def bench_stream(validate: bool = False, workload: Path | None = None) -> dict[str, Any]:
    """Plain data, and `text` for people. Everything in it is modelled.

    `ValueError` where nothing was asked for, or the file is not a workload.
    """
    if not validate and workload is None:
        raise ValueError("expected --validate, --workload FILE.yaml or both with --backend stream, got neither")
    found: dict[str, Any] = {"modelled": True, "text": ""}
    texts = []
    if workload is not None:
        step = read_workload(workload).predict()
        found["prediction"] = to_json(step)
        texts.append(describe(step))
    if validate:
        parts = validation()
        found["validation"] = [part.to_json() for part in parts]
        texts.append(markdown(parts))
    return {**found, "text": "\n\n".join(texts)}


def read_workload(path: Path) -> StreamWorkload:
    """The workload in a YAML file. `ValueError` with the path and the first thing that is wrong."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return StreamWorkload.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise ValueError(f"{path}: {place}: {first['msg']}; got {first['input']!r}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: expected a workload as YAML, cannot read it: {error}") from None
