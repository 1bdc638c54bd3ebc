"""Live progress of a run: bars where there is a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

# Plain lines come at most this often, besides one for each trained network.
_QUIET_SECONDS = 10.0


class Display(Protocol):
    """Shows the events of a run; a context manager around it."""

    def __enter__(self) -> Display: ...
    def __exit__(self, *error: object) -> None: ...
    def show(self, event: dict[str, Any]) -> None: ...


def make_display(seeds: list[int], trainings: int, steps: int, console: Console | None = None) -> Display:
    """Bars on a terminal, lines otherwise. `trainings` networks a seed, of `steps` each."""
    console = console or Console(stderr=True)
    if console.is_terminal:
        return Bars(seeds, trainings, steps, console)
    return Lines(len(seeds), trainings, steps, console)


class Bars:
    """One bar a seed over all its steps."""

    def __init__(self, seeds: list[int], trainings: int, steps: int, console: Console) -> None:
        self.steps = steps
        self.done = dict.fromkeys(seeds, 0)
        self.progress = Progress(
            TextColumn("seed {task.fields[seed]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=console,
        )
        self.tasks: dict[int, TaskID] = {
            seed: self.progress.add_task("starting", total=trainings * steps, seed=seed) for seed in seeds
        }

    def __enter__(self) -> Bars:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def show(self, event: dict[str, Any]) -> None:
        seed = event["seed"]
        if event["event"] == "trained":
            self.done[seed] += self.steps
            self.progress.update(self.tasks[seed], completed=self.done[seed])
            self.progress.console.print(_trained(event), highlight=False)
        else:
            self.progress.update(self.tasks[seed], completed=self.done[seed] + event["step"], description=_where(event))


class Lines:
    """A line for each trained network, and now and then one for a step."""

    def __init__(self, seeds: int, trainings: int, steps: int, console: Console) -> None:
        self.console = console
        self.total = seeds * trainings * steps
        self.steps = steps
        self.finished = 0
        self.within: dict[int, int] = {}
        self.started = self.last = time.monotonic()
        self.skipped = 0

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def show(self, event: dict[str, Any]) -> None:
        if event["event"] == "trained":
            self.finished += self.steps
            self.within[event["seed"]] = 0
            self._print(_trained(event))
            return
        self.within[event["seed"]] = event["step"]
        if time.monotonic() - self.last >= _QUIET_SECONDS:
            self._print(f"seed {event['seed']}  {_where(event)}{self._left()}")

    def _left(self) -> str:
        done = self.finished + sum(self.within.values())
        seconds = (time.monotonic() - self.started) * (self.total - done) / max(1, done)
        return f"  about {int(seconds) // 60}:{int(seconds) % 60:02d} left"

    def _print(self, line: str) -> None:
        self.last = time.monotonic()
        self.console.print(line, highlight=False, soft_wrap=True)


def _where(event: dict[str, Any]) -> str:
    kind = "" if event["kind"] == "round" else f" {event['kind']}"
    return f"round {event['round']}{kind}  step {event['step']:,}/{event['steps']:,}  loss {event['loss']:.3f}"


def _trained(event: dict[str, Any]) -> str:
    what = "ticket" if event["kind"] == "round" else event["kind"]
    what = "dense" if event["round"] == 0 else what
    backends = ", ".join(sorted(set(event["backends"].values()))) or "torch"
    return (
        f"seed {event['seed']}  round {event['round']:>2}  {event['density']:>7.2%} kept  {what:<8}"
        f"test {event['test_accuracy']:.2%} at step {event['early_stop_step']:,}  "
        f"{event['seconds']:.1f} s  {event['step_seconds'] * 1e3:.2f} ms/step on {backends}"
    )
