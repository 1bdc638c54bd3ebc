"""The tables of the report, as rows of text."""

from collections.abc import Mapping
from dataclasses import dataclass

from sparseflow.report.result import (
    Candidate,
    Control,
    Measure,
    Result,
    RoundPlan,
    Trained,
    accuracy,
    against_dense,
    early_stop,
    final_accuracy,
    gradient_ratio,
    levels,
    levels_by_kind,
    loss,
    seconds,
    state_ratio,
    step_seconds,
)
from sparseflow.report.words import (
    MISSING,
    Row,
    accuracy_percent,
    accuracy_range,
    duration,
    interval,
    number,
    percent,
    points,
    times,
)
from sparseflow.training.verdict import Comparison


@dataclass(frozen=True)
class Table:
    """A head and rows of as many cells."""

    head: Row
    rows: list[Row]


@dataclass(frozen=True)
class LayerDensities:
    """Each layer's name, size and density by round; None where a round does not say."""

    rounds: list[int]
    rows: list[tuple[str, str, list[float | None]]]


@dataclass(frozen=True)
class PlanTable:
    """The backends of one round of one seed, with reasons, and the backend of each layer in each round."""

    seed: str
    round: int
    reasons: Table
    by_round: Table


def interval_table(comparisons: Mapping[str, Comparison]) -> Table:
    """Ticket minus each arm, with both intervals."""
    head = ["ticket minus", "mean", "95 % over examples", "95 % over seeds (t)", "seeds", "examples"]
    rows = [
        [
            arm,
            points(one.mean),
            interval(one.low, one.high),
            interval(one.t_low, one.t_high),
            str(one.seeds),
            number(one.examples),
        ]
        for arm, one in comparisons.items()
    ]
    return Table(head, rows)


def round_table(run: Result) -> Table:
    """All rounds as means over seeds, with the accuracy of the controls of the same round."""
    controls = levels_by_kind(run.controls)
    step_ratio = against_dense(step_seconds, run.rounds)
    with_loss = any(network.test_loss is not None for network in run.rounds)
    head = ["round", "weights kept", "test accuracy", *controls, "step / dense", "state / dense"]
    head += ["early stop", "time", "a step", "at last step", *(["test loss"] * with_loss)]
    together = any(network.processes > 1 for network in run.rounds)
    head += ["gradients sent / dense"] * together
    rows = []
    for level in levels(run.rounds):
        beside = [next((c for c in kind if c.round == level.round), None) for kind in controls.values()]
        rows.append(
            [
                str(level.round),
                percent(level.density),
                accuracy_range(level.spread(accuracy)),
                *(accuracy_percent(c.mean(accuracy)) if c is not None else MISSING for c in beside),
                times(level.mean(step_ratio)),
                times(level.mean(state_ratio)),
                number(level.mean(early_stop)),
                duration(level.mean(seconds)),
                duration(level.mean(step_seconds)),
                accuracy_percent(level.mean(final_accuracy)),
                *([_loss(level.mean(loss))] * with_loss),
                *([times(level.mean(gradient_ratio))] * together),
            ]
        )
    return Table(head, rows)


def seed_table(run: Result) -> Table:
    """Every trained network, controls after tickets."""
    head = ["seed", "round", "network", "weights kept", "test accuracy", "test loss", "at last step"]
    head += ["early stop", "steps", "time"]
    networks: list[Trained] = [*run.rounds, *run.controls]
    rows = [
        [
            str(n.seed),
            str(n.round),
            n.kind if isinstance(n, Control) else "dense" if n.round == 0 else "ticket",
            percent(n.density),
            accuracy_percent(n.test_accuracy),
            _loss(n.test_loss),
            accuracy_percent(n.final_test_accuracy),
            number(n.early_stop_step),
            number(n.steps),
            duration(n.seconds),
        ]
        for n in networks
    ]
    return Table(head, rows)


def layer_densities(run: Result) -> LayerDensities | None:
    """The density of each layer in each round, mean over seeds; None where no round counts its layers."""
    all_levels = levels(run.rounds)
    sizes = {name: size for network in run.rounds for name, size in network.total.items()}
    if not sizes:
        return None
    rows = [
        (name, number(size), [level.mean(_density_of(name)) for level in all_levels]) for name, size in sizes.items()
    ]
    return LayerDensities([level.round for level in all_levels], rows)


def plan_table(run: Result, verdict_round: int | None) -> PlanTable | None:
    """The plan of the first seed at the round of the verdict, else the last planned; None without plans."""
    for seed, plans in run.plan.items():
        known = {number: plan for number, plan in enumerate(plans) if plan is not None and plan.rows}
        if known:
            chosen = verdict_round if verdict_round in known else max(known)
            reasons = [
                [
                    row.name,
                    percent(row.density),
                    row.backend,
                    row.reason or MISSING,
                    " · ".join(map(_candidate, row.candidates)) or MISSING,
                ]
                for row in known[chosen].rows
            ]
            head = ["layer", "weights kept", "backend", "why", "candidates"]
            return PlanTable(seed, chosen, Table(head, reasons), _backends_by_round(known))
    return None


def _backends_by_round(plans: Mapping[int, RoundPlan]) -> Table:
    backends = {number: {row.name: row.backend for row in plan.rows} for number, plan in plans.items()}
    names = dict.fromkeys(name for of_round in backends.values() for name in of_round)
    rows = [[name, *(of_round.get(name, MISSING) for of_round in backends.values())] for name in names]
    return Table(["layer", *(f"round {number}" for number in backends)], rows)


def _candidate(candidate: Candidate) -> str:
    said = candidate.reason if candidate.reason is not None else duration(candidate.seconds)
    return f"{candidate.backend}: {said}"


def _density_of(name: str) -> Measure:
    def density(network: Trained) -> float | None:
        kept, total = network.kept.get(name), network.total.get(name)
        return kept / total if kept is not None and total else None

    return density


def _loss(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4f}"
