"""Published figures of Cerebras machines: what was run, what was measured or stated, and what we know of it.

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
LLAMA2_7B = Transformer(32, 4096, 4096, 32_000, mlp=11_008, gated=True)
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


@dataclass(frozen=True)
class Account:
    """A statement about operations or parameters and what our counter says, rounded to the statement's `digits`."""

    name: str
    stated: float | None
    counted: float | None
    digits: int = 0
    doubt: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the count is what was stated."""
        return self.stated is not None and self.counted is not None and round(self.counted, self.digits) == self.stated


_LOG = "ALCF user guide"
_SEQUENCE = "sequence not read"
_OVERLAP = "how far reductions hide under AXPYs, and the mapping: the one target for sparse layers"
BERT_1024 = Run(
    "BERT-large, sequence 128", BERT_LARGE, "cs2", 1, 1024, 4047.95, f"{_LOG} at a8a674de, R2.0.3", "calibrated"
)
BERT_512 = Run(
    "BERT-large, sequence 128", BERT_LARGE, "cs2", 1, 512, 2937.77, "third-party log, 2024, about R2.1", "calibrated"
)

RUNS: tuple[Run, ...] = (
    BERT_1024,
    BERT_512,
    Run("GPT-J 6B", GPT_J, "cs2", 1, 66, 19.80, f"{_LOG}, R1.9.2", "check"),
    Run("GPT-J 6B", GPT_J, "cs2", 2, 120, 43.67, f"{_LOG} at a8a674de, R2.0.3", "check"),
    Run("LLaMA-7B", LLAMA_7B, "cs2", 1, 99, 20.46, f"{_LOG} at 9fa2df7b, R2.1.1", "check", "2,048 tokens presumed"),
    Run("GPT-J 6B", GPT_J, "cs2", 2, 130, 27.53, f"{_LOG} at c17ccbc3, R1.7.1", "older software"),
    Run("Llama2-7B at 4,096 tokens", LLAMA2_7B, "cs3", 1, 1024, 31.98, "public log, R2.10", "open", _SEQUENCE),
    Run("Llama2-7B at 2,048 tokens", LLAMA_7B, "cs3", 1, 1024, 31.98, "public log, R2.10", "open", _SEQUENCE),
    Run("Llama2-7B at 4,096 tokens", LLAMA2_7B, "cs3", 1, 1024, 33.04, "public log, R2.6", "open", _SEQUENCE),
    Run("Llama2-7B at 2,048 tokens", LLAMA_7B, "cs3", 1, 1024, 33.04, "public log, R2.6", "open", _SEQUENCE),
)


def _less(density: float) -> float:
    """How many times fewer operations GPT-3 XL has at a density of its blocks."""
    return GPT3_XL.forward_flops() / GPT3_XL.forward_flops(density)


ACCOUNTS: tuple[Account, ...] = (
    Account("GPT-3 XL, 75 % sparse: per cent fewer training FLOPs (SPDF)", 60, 100 * (1 - 1 / _less(0.25))),
    Account("the same: times fewer", 2.5, _less(0.25), 1),
    Account("GPT-3 XL, 83.8 % sparse: times fewer inference FLOPs (iterative pruning)", 3, _less(0.162)),
    Account("the same: times fewer parameters", 4.3, GPT3_XL.parameters() / GPT3_XL.parameters(0.162), 1),
    Account("GPT-3 XL, 50 % sparse: times fewer training FLOPs", None, _less(0.5), doubt="SPDF's table not read"),
    Account("6.7B, variable sparse pre-training: per cent fewer FLOPs", None, None, doubt="steps of phase 2 not read"),
)

UNREAD: tuple[tuple[str, str], ...] = (
    ("Speed-up against sparsity of a 12k × 12k layer (Hot Chips 34; IEEE Micro 43(3); SPDF, 2303.10464)", _OVERLAP),
    ("CS-3 training speed-up against sparsity (2405.03594)", "CS-3's rate, and sparse steps as a whole"),
    ("Speed-ups of Sparse-IFT (2303.11525) and MediSwift (2403.00952)", "sparse steps as a whole"),
    ("Scaling over 1 to 16 CS-2 (Andromeda)", "the bubble and the tree between systems"),
    ("Days of training on 4 CS-2, 1.3B to 70B (price list, 2022)", "dense steps of sizes not fitted"),
    ("CS-2 GPT-2 XL, tokens a second by sequence length and batch (2310.04607)", "attention, fixed time"),
    ("GenSLMs, samples a second on 1 to 16 CS-2 (SC22)", "scaling"),
    ("CS-2 roofline points (2409.00287)", "utilisation"),
    ("MeshGEMM cycles (WaferLLM, 2502.04563)", "dense products"),
    ("Chain and tree reductions on the fabric (2404.15888)", "the event simulation's reductions"),
    ("CS-1 stencil (2010.03660), CS-2 FFT and TLR-MVM", "a core's AXPY rate"),
    ('Llama3-8B "msl_2k" on CS-3, 19.4 samples/s', "nothing while its batch and sequence are unknown"),
    ("UNet, 14,724 samples/s by the compiler's report", "nothing: pipelined execution, not weight streaming"),
)

CHOICES: tuple[tuple[str, str], ...] = (
    (
        "LLaMA-7B has sequences of 2,048",
        "settled after the errors at both lengths were computed, for the simplest model; at 4,096 it misses by half",
    ),
    ("GPT-J on R1.7.1 is another epoch of software", "set aside after it missed by 54 % in the simplest model"),
    ("the head of a masked language model runs on all tokens", "the better-fitting of two options"),
    ("GPT-J on R1.9.2 ran on one CS-2", "its command names no number of systems; one is the default"),
    ("Llama2-7B and Llama3-8B are not compared", "their sequence lengths are unknown"),
    ("the two calibration runs differ in release", "no two runs of one release and one model were found"),
    (
        "kernel, mapping rule and what utilisation scales in the closed forms",
        "fixed before their errors were seen and not changed after, though the simplest model's were known",
    ),
)
