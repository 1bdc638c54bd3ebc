"""The two numbers that are fitted, and the two runs that they are fitted to."""

from __future__ import annotations

from functools import cache

from sparseflow.hardware.wafer.layer import Wafer
from sparseflow.hardware.wafer.published import BERT_512, BERT_1024, Run
from sparseflow.hardware.wafer.step import Prediction, predict
from sparseflow.hardware.wafer.systems import CS2, find_system

# From the third on nothing changes any more.
_ROUNDS = 10


@cache
def wafer(system: str = "cs2") -> Wafer:
    """The machine of that name as calibrated: utilisation and fixed time of a step from two runs of BERT-large on a
    CS-2. A CS-3 is supposed to have the same; no run settles it.
    """
    utilisation, fixed = fit()
    return Wafer(find_system(system), utilisation=utilisation, fixed=fixed)


@cache
def fit() -> tuple[float, float]:
    """(utilisation, fixed seconds) with which both calibration runs come out exactly."""
    utilisation, fixed = 1.0, 0.0
    for _ in range(_ROUNDS):
        utilisation, fixed = _refit(utilisation)
    return utilisation, fixed


def analytic() -> tuple[float, float]:
    """(operations a second, fixed seconds) by the same runs of the simplest model, fixed + operations / rate."""
    long, short = BERT_1024, BERT_512
    work = [run.batch * run.transformer.training_flops() for run in (long, short)]
    rate = (work[0] - work[1]) / (long.step_seconds - short.step_seconds)
    return rate, long.step_seconds - work[0] / rate


def analytic_samples_per_second(run: Run) -> float:
    """What the simplest model predicts of a run."""
    rate, fixed = analytic()
    own = run.batch / run.systems
    return run.batch / (fixed + own * run.transformer.training_flops() / rate)


def predicted_step(run: Run, machine: Wafer | None = None) -> Prediction:
    """The model's step of a published run."""
    chosen = machine or wafer(run.system)
    return predict(run.transformer.network(), run.batch, chosen, systems=run.systems)


def _refit(utilisation: float) -> tuple[float, float]:
    """Of a step, the cores' work goes with utilisation; what is left of the measured one hardly does."""
    runs = (BERT_1024, BERT_512)
    steps = [predicted_step(run, Wafer(CS2, utilisation=utilisation)) for run in runs]
    work = [utilisation * _on_cores(step) for step in steps]
    left = [run.step_seconds - (step.seconds - _on_cores(step)) for run, step in zip(runs, steps)]
    fitted = (work[0] - work[1]) / (left[0] - left[1])
    return fitted, left[0] - work[0] / fitted


def _on_cores(step: Prediction) -> float:
    return step.parts["compute"] + step.parts["reduction"] + step.parts["attention scores"]
