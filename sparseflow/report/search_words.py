"""What a search cost and how often it succeeds, in words and as a table."""

from sparseflow.report.result import Search, SearchCost
from sparseflow.report.tables import Table
from sparseflow.report.words import MISSING, duration, percent, times


def search_in_words(search: Search) -> list[str]:
    """The cost of finding the ticket, what the ticket saves, and how the seeds did, a sentence or two each."""
    return [_cost(search), _success(search)]


def search_table(search: Search) -> Table:
    """A row a seed: FLOPs and seconds of the search, of a dense training and of the ticket's."""
    head = ["seed", "search, FLOPs", "dense", "ticket", "search, time", "dense", "ticket", "dense trainings"]
    head += ["paid back after", "verdict of this seed alone"]
    return Table(head, [_row(search, cost) for cost in search.costs])


def _row(search: Search, cost: SearchCost) -> list[str]:
    return [
        str(cost.seed),
        *(_flops(amount.flops) for amount in (cost.search, cost.dense, cost.ticket)),
        *(duration(amount.seconds) for amount in (cost.search, cost.dense, cost.ticket)),
        f"{_number(cost.in_dense_trainings.flops)} by FLOPs, {_number(cost.in_dense_trainings.seconds)} by time",
        f"{_trainings(cost.pays_after.flops)} by FLOPs, {_trainings(cost.pays_after.seconds)} by time",
        search.success.verdicts.get(cost.seed, MISSING),
    ]


def _cost(search: Search) -> str:
    by_flops = search.mean(lambda cost: cost.in_dense_trainings.flops)
    by_time = search.mean(lambda cost: cost.in_dense_trainings.seconds)
    own = search.mean(lambda cost: None if cost.saved.flops is None else 1 - cost.saved.flops)
    own_time = search.mean(lambda cost: None if cost.saved.seconds is None else 1 - cost.saved.seconds)
    inference = f"{times(search.mean(lambda cost: cost.inference))} the FLOPs"
    if own is None and own_time is None:
        return f"{_finding(by_flops, by_time)} An inference takes {inference} of the dense network's."
    training = _known(
        "" if own is None else f"{times(own)} the FLOPs", "" if own_time is None else f"{times(own_time)} the time"
    )
    return f"{_finding(by_flops, by_time)} Training it takes {training} of a dense training, an inference {inference}."


def _finding(flops: float | None, seconds: float | None) -> str:
    if not flops and not seconds:
        return "Finding the ticket took no training besides its own."
    if flops is None:
        return f"Finding the ticket took the time of {_number(seconds)} dense trainings."
    time = "" if seconds is None else f"the time of {_number(seconds)}"
    return f"Finding the ticket took {_known(f'the FLOPs of {_number(flops)} dense trainings', time)}."


def _known(*parts: str) -> str:
    return " and ".join(part for part in parts if part)


def _success(search: Search) -> str:
    found = search.success
    own = list(found.verdicts.values())
    open = f", {own.count('undecided')} undecided" if "undecided" in own else ""
    said = f"Judged one by one, {own.count('ticket')} of {len(own)} seeds had a winning ticket{open}."
    if found.expected_density is None:
        return said
    return f"{said} Expected sparsity at the accuracy of dense: {percent(1 - found.expected_density)}."


def _flops(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3g}"


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def _trainings(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} trainings"
