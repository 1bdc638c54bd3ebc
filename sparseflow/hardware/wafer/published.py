"""Published figures of Cerebras machines: what was run, what was measured, and what we know of it.

Throughputs come from public run logs (argonne-lcf/user-guides, docs/ai-testbed/cerebras/example-programs.md, at the
commit named, and a third party's log). All dense; sequences of 2,048 unless a row says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sparseflow.hardware.wafer.transformer import Transformer

Use = Literal["calibrated", "check", "older software", "open"]

BERT_LARGE = Transformer(24, 1024, 128, 30_522)
GPT_J = Transformer(28, 4096, 2048, 50_400)
LLAMA_7B = Transformer(32, 4096, 2048, 32_000, mlp=11_008, gated=True)
GPT3_XL = Transformer(24, 2048, 2048, 50_257)


@dataclass(frozen=True)
class Run:
    """A published run: samples a second of all systems together. `doubt` is what is not known of it."""

    name: str
    transformer: Transformer
    system: str
    systems: int
    batch: int
    samples_per_second: float
    source: str
    use: Use
    doubt: str = ""

    @property
    def step_seconds(self) -> float:
        """Seconds of a step."""
        return self.batch / self.samples_per_second


_LOG = "ALCF user guide"
BERT_1024 = Run(
    "BERT-large, sequence 128", BERT_LARGE, "cs2", 1, 1024, 4047.95, f"{_LOG} at a8a674de, R2.0.3", "calibrated"
)
BERT_512 = Run(
    "BERT-large, sequence 128",
    BERT_LARGE,
    "cs2",
    1,
    512,
    2937.77,
    "third-party log, 2024-04-03, about R2.1",
    "calibrated",
)

RUNS: tuple[Run, ...] = (
    BERT_1024,
    BERT_512,
    Run("GPT-J 6B", GPT_J, "cs2", 1, 66, 19.80, f"{_LOG}, R1.9.2", "check"),
    Run("GPT-J 6B", GPT_J, "cs2", 2, 120, 43.67, f"{_LOG} at a8a674de, R2.0.3", "check"),
    Run("LLaMA-7B", LLAMA_7B, "cs2", 1, 99, 20.46, f"{_LOG} at 9fa2df7b, R2.1.1", "check"),
    Run("GPT-J 6B", GPT_J, "cs2", 2, 130, 27.53, f"{_LOG} at c17ccbc3, R1.7.1", "older software"),
)
