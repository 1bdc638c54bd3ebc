"""The contents of `result.json` as typed records, and their means over seeds."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from sparseflow.training.verdict import Comparison, VerdictValue

ControlKind = Literal["reinit", "shuffle", "random"]
CONTROL_KINDS: tuple[ControlKind, ...] = ("reinit", "shuffle", "random")


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Trained(_Record):
    """One trained network: accuracies and ratios are fractions, times are seconds. None: not measured."""

    seed: int
    round: int
    density: float
    kept: dict[str, int] = {}
    total: dict[str, int] = {}
    test_accuracy: float | None = None
    test_loss: float | None = None
    final_test_accuracy: float | None = None
    early_stop_step: int | None = None
    steps: int | None = None
    seconds: float | None = None
    step_seconds: float | None = None
    state_ratio: float | None = None
    processes: int = 1
    gradient_bytes: dict[str, int] = {}


class Control(Trained):
    """A network trained beside the ticket of the same round."""

    kind: ControlKind


class Candidate(_Record):
    """A backend that the plan considered; `reason` says why it cannot run."""

    backend: str
    seconds: float | None = None
    reason: str | None = None


class PlanRow(_Record):
    """The backend of one layer, and why."""

    name: str
    backend: str
    density: float | None = None
    reason: str | None = None
    candidates: list[Candidate] = []


class RoundPlan(_Record):
    """The backends of all layers in one round."""

    rows: list[PlanRow] = []


class RoundVerdict(_Record):
    """A verdict and the round that it is about."""

    value: VerdictValue
    reason: str
    comparisons: dict[str, Comparison] = {}
    round: int | None = None
    density: float | None = None


class WaferStep(_Record):
    """What the machine model of a wafer needs to know of a run's last round: a batch, and the network as
    `hardware.wafer.Network.to_json` has it.
    """

    network: dict[str, Any]
    batch: int
    system: str = "cs2"
    systems: int = 1


class Amount(_Record):
    """FLOPs, which are counted, and seconds; or ratios of them. None: not known."""

    flops: float | None = None
    seconds: float | None = None


class SearchCost(_Record):
    """What one seed's search took: see `training.search_cost`, whose names these are."""

    seed: int
    search: Amount
    dense: Amount
    ticket: Amount
    inference: float
    in_dense_trainings: Amount
    saved: Amount
    pays_after: Amount


class Success(_Record):
    """How the seeds did one by one: see `training.success`."""

    verdicts: dict[int, VerdictValue]
    rate: float
    expected_density: float | None = None


class Search(_Record):
    """What finding the tickets of a round cost, and how often there was one."""

    round: int
    costs: list[SearchCost]
    success: Success

    def mean(self, measure: Callable[[SearchCost], float | None]) -> float | None:
        """The mean over seeds; None where one of them does not have it."""
        values = [value for cost in self.costs if (value := measure(cost)) is not None]
        return sum(values) / len(values) if values and len(values) == len(self.costs) else None


class Erased(_Record):
    """How much a layer still knows of its start: see `training.erasure`."""

    correlation: float
    flips: float
    change: float


class Shared(_Record):
    """What the seeds' masks share: see `masks.overlap`."""

    shared: float
    of_kept: float
    chance: float
    layered: float


class Instruments(_Record):
    """Measures of the last round's tickets."""

    erased: dict[str, Erased] = {}
    shared: Shared | None = None


class Result(_Record):
    """A run. The plan maps each seed to the plans of its rounds. `wafer` is for runs on the backend `stream`."""

    name: str
    task: str
    rounds: list[Trained]
    sparseflow: str | None = None
    recipe: dict[str, Any] = {}
    versions: dict[str, Any] = {}
    machine: dict[str, Any] = {}
    seeds: list[int] = []
    seconds: float | None = None
    plan: dict[str, list[RoundPlan | None]] = {}
    controls: list[Control] = []
    verdict: RoundVerdict | None = None
    search: Search | None = None
    instruments: Instruments | None = None
    wafer: WaferStep | None = None


@dataclass(frozen=True)
class Spread:
    """Mean, least and greatest over `count` seeds."""

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Level:
    """The networks of one round, one a seed."""

    round: int
    density: float
    networks: tuple[Trained, ...]

    def spread(self, measure: "Measure") -> Spread | None:
        """The measure over those seeds that have it, or None where none has."""
        values = [value for network in self.networks if (value := measure(network)) is not None]
        if not values:
            return None
        return Spread(sum(values) / len(values), min(values), max(values), len(values))

    def mean(self, measure: "Measure") -> float | None:
        """The mean of the measure over those seeds that have it, or None where none has."""
        spread = self.spread(measure)
        return None if spread is None else spread.mean


Measure = Callable[[Trained], float | None]


def read_result(result: Mapping[str, object]) -> Result:
    """The typed form of `result.json`. Raises a ValueError that names the wrong field."""
    return Result.model_validate(result)


def levels(networks: Iterable[Trained]) -> list[Level]:
    """The networks grouped by round, in order of rounds; the density is the mean over seeds."""
    by_round: dict[int, list[Trained]] = {}
    for network in networks:
        by_round.setdefault(network.round, []).append(network)
    return [
        Level(number, sum(n.density for n in by_round[number]) / len(by_round[number]), tuple(by_round[number]))
        for number in sorted(by_round)
    ]


def levels_by_kind(controls: Sequence[Control]) -> dict[ControlKind, list[Level]]:
    """The control levels of each kind that was run."""
    return {
        kind: levels(control for control in controls if control.kind == kind)
        for kind in CONTROL_KINDS
        if any(control.kind == kind for control in controls)
    }


def accuracy(network: Trained) -> float | None:
    """Test accuracy at early stop."""
    return network.test_accuracy


def final_accuracy(network: Trained) -> float | None:
    """Test accuracy after the last step."""
    return network.final_test_accuracy


def loss(network: Trained) -> float | None:
    """Test loss at early stop."""
    return network.test_loss


def early_stop(network: Trained) -> float | None:
    """The step with the least validation loss."""
    return network.early_stop_step


def seconds(network: Trained) -> float | None:
    """Seconds of the whole training."""
    return network.seconds


def step_seconds(network: Trained) -> float | None:
    """Median seconds of a training step."""
    return network.step_seconds


def state_ratio(network: Trained) -> float | None:
    """Length of values, gradients and optimizer state against dense, padding included."""
    return network.state_ratio


def gradient_ratio(network: Trained) -> float | None:
    """Bytes of gradients that processes send for the pruned layers, over those of the same layers dense."""
    dense = network.gradient_bytes.get("pruned_if_dense")
    return network.gradient_bytes["pruned"] / dense if dense and network.processes > 1 else None


def against_dense(measure: Measure, rounds: Sequence[Trained]) -> Measure:
    """The measure over that of the dense network (round 0) of the same seed."""
    dense = {network.seed: measure(network) for network in rounds if network.round == 0}

    def ratio(network: Trained) -> float | None:
        own, base = measure(network), dense.get(network.seed)
        return own / base if own is not None and base else None

    return ratio
