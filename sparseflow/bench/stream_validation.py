"""The machine model against every published figure, in tables: what agrees, what does not, and what nobody has read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sparseflow.hardware.wafer.calibration import analytic, analytic_samples_per_second, fit, predicted_step
from sparseflow.hardware.wafer.published import ACCOUNTS, CHOICES, RUNS, UNREAD, Account, Run
from sparseflow.hardware.wafer.systems import CS2

OPEN = "open"


@dataclass(frozen=True)
class Part:
    """One table and what is to be said about it."""

    title: str
    about: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def validation() -> list[Part]:
    """All published figures, in the order of what they are worth."""
    return [_throughput(), _accounting(), _unread(), _choices()]


def markdown(parts: Iterable[Part]) -> str:
    """The tables in Markdown, which also reads well on a terminal."""
    return "\n\n".join(f"**{part.title}**\n\n{part.about}\n\n{_table(part.head, part.rows)}" for part in parts)


def _throughput() -> Part:
    utilisation, fixed = fit()
    rate, analytic_fixed = analytic()
    about = (
        "All modelled figures of a step. Calibrated on the first two rows and on nothing else: utilisation "
        f"{utilisation:.3f} and {fixed * 1e3:.1f} ms a step for the closed forms; {rate / 1e15:.2f} PFLOP/s "
        f"({rate / CS2.peak_flops:.0%} of {CS2.wafer}'s modelled peak) and {analytic_fixed * 1e3:.1f} ms for the "
        "simplest model, step = fixed + operations / rate, which is there to compare with."
    )
    head = ("run", "published samples/s", "modelled", "error", "simplest model", "error", "use")
    return Part("Throughput of dense training", about, head, tuple(_run_row(run) for run in RUNS))


def _run_row(run: Run) -> tuple[str, ...]:
    name = f"{run.name}, batch {run.batch}, {run.systems} × {run.system}; {run.source}"
    use = f"{run.use}: {run.doubt}" if run.doubt else run.use
    step = predicted_step(run).samples_per_second
    simplest = analytic_samples_per_second(run)
    cells = [cell for value in (step, simplest) for cell in (f"{value:.2f}", _error(value, run.samples_per_second))]
    return (name, f"{run.samples_per_second:.2f}", *cells, use)


def _accounting() -> Part:
    rows = tuple(_account_row(account) for account in ACCOUNTS)
    about = (
        "Operations and parameters, counted with full attention and a dense head on all tokens. A statement agrees "
        "where our count, rounded as the statement is, is the same."
    )
    return Part("Statements about accounting", about, ("statement", "published", "counted", "verdict"), rows)


def _account_row(account: Account) -> tuple[str, ...]:
    if account.stated is None:
        return (account.name, f"{OPEN}: {account.doubt}", f"{account.counted:.4g}" if account.counted else "–", OPEN)
    counted = f"{account.counted:.4g}"
    return (account.name, f"{account.stated:g}", counted, "agrees" if account.agrees else "DIFFERS")


def _unread() -> Part:
    about = "Figures that exist and that we have not read. Until they are, the model of sparse steps is unvalidated."
    return Part("Open", about, ("figure", "what it would settle"), tuple(UNREAD))


def _choices() -> Part:
    about = "What was chosen, and when, so that nobody takes the errors above for those of a blind test."
    return Part("Choices", about, ("choice", "when and why"), tuple(CHOICES))


def _error(modelled: float, published: float) -> str:
    # Adding zero makes a negative zero positive.
    return f"{round(modelled / published - 1, 3) + 0.0:+.1%}".replace("-", "−").replace("%", " %")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
