"""sparseflow on the command line. Exit status: 0 done, 1 error, 2 wrong input, 75 stopped by a signal."""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sparseflow.cli_compare import compare
from sparseflow.cli_import import import_weights
from sparseflow.cli_output import AsJson, own_output
from sparseflow.cli_reproduce import reproduce
from sparseflow.cli_theory import theory

app = typer.Typer(
    help="Training of sparse networks that gets cheaper as they get sparser, and the search for lottery tickets.",
    epilog="--traceback, anywhere, shows where a wrong input was noticed: for errors inside your own model or data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


Set = Annotated[list[str] | None, typer.Option("--set", help="key=value laid over the recipe, as YAML.")]


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe that comes with sparseflow.")],
    out: Annotated[Path | None, typer.Option(help="The run's folder; by default runs/NAME.")] = None,
    settings: Set = None,
    plan: Annotated[Path | None, typer.Option(help="Replay the plans of a result.json.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    replan: Annotated[bool, typer.Option("--replan", help="Plan unfinished rounds anew; not bit-identical.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find a lottery ticket, train its controls, and write result, report and ticket into a folder."""
    with own_output():
        folder, result = _run(recipe, out, settings or [], plan, resume, replan)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        from sparseflow.report import summary

        typer.echo(summary(result))
        typer.echo(f"\nreport: {folder / 'report.html'}\nticket: {folder / 'ticket.safetensors'}")


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe's file or name.")],
    density: Annotated[float, typer.Option(help="The fraction of weights to keep.")] = 0.1,
    settings: Set = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Time anew what was timed on this machine before.")] = False,
    world: Annotated[int, typer.Option(min=1, help="Also model traffic and memory on so many ranks.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Time every backend on a recipe's layers at a density, on this machine, and say which would run them and why."""
    from sparseflow import replay, runs
    from sparseflow.recipes import load_recipe

    chosen = load_recipe(recipe, settings or [])
    with own_output():
        runs.make_local(chosen.data, _say)
        made = replay.plan_recipe(chosen, density, fresh)
        charged = replay.charge_recipe(chosen, made, world) if world > 1 else None
    if as_json:
        more = {} if charged is None else {"charge": charged.to_json()}
        typer.echo(json.dumps({**made.to_json(), **more}, indent=2))
    else:
        typer.echo(str(made) if charged is None else f"{made}\n{charged}")


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A safetensors file, or a run's folder.")],
    as_json: AsJson = False,
) -> None:
    """Say what a ticket, a weights file or a run holds."""
    from sparseflow.inspection import describe_file

    found = describe_file(path)
    typer.echo(json.dumps(found, indent=2) if as_json else _text(found))


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="A run's folder, a ticket or a weights file.")],
    target: Annotated[Path, typer.Argument(help="The file to write.")],
    form: Annotated[str, typer.Option("--format", help="dense: loads anywhere; compact: small; cerebras.")] = "dense",
    as_json: AsJson = False,
) -> None:
    """Write the weights of a run or a ticket as safetensors, dense with exact zeros or compact, or for a Cerebras."""
    from sparseflow.inspection import export as write_weights

    write_weights(source, target, form)
    size = target.stat().st_size
    typer.echo(json.dumps({"path": str(target), "bytes": size}) if as_json else f"{target}: {size:,} bytes, {form}")


@app.command(name="data")
def fetch_data(
    name: Annotated[str | None, typer.Argument(help="What to fetch; without it, list all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a data set, or list which are on this machine."""
    from sparseflow import data

    found = {name: str(data.fetch(name))} if name else data.available()
    typer.echo(json.dumps(found) if as_json else "\n".join(f"{key:<16} {place}" for key, place in found.items()))


@app.command()
def bench(
    file: Annotated[Path | None, typer.Argument(help="With --json: write it here, and print text.")] = None,
    backend: Annotated[str, typer.Option(help="cpu; triton: its kernels on a GPU; or stream.")] = "cpu",
    only: Annotated[list[str] | None, typer.Option(help="A group of figures to measure; repeatable.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write all samples here, as JSON.")] = None,
    validate: Annotated[bool, typer.Option("--validate", help="stream: hold the model against publications.")] = False,
    workload: Annotated[Path | None, typer.Option(help="stream: a YAML file with dimensions, batch, system.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the promises about speed and memory on this machine; status 1 where one is missed."""
    from sparseflow.bench import bench_of

    if file is not None and not as_json:
        raise ValueError(f"expected --json before {str(file)!r}: sparseflow bench --json FILE")
    targets = [path for path in (file, out) if path is not None]
    if validate or workload is not None:
        if backend != "stream":
            raise ValueError(f"--validate and --workload go with --backend stream, got --backend {backend}")
        _predict(validate, workload, targets, as_json and file is None)
        return
    measure = bench_of(backend)

    def save(found: dict[str, Any]) -> None:
        for path in targets:
            path.write_text(json.dumps(found, indent=2) + "\n")

    show = None if as_json and file is None else partial(print, file=sys.stdout, flush=True)
    with own_output():
        found = measure(only or (), show, save)
    if as_json and file is None:
        typer.echo(json.dumps(found))
    if any(figure["missed"] for figure in found["figures"]):
        raise typer.Exit(1)


@app.command()
def backends(as_json: AsJson = False) -> None:
    """List the backends installed here, and whether each can run a plain linear layer on this machine or its GPU."""
    from sparseflow.hardware.backends import readiness

    found = readiness()
    if as_json:
        typer.echo(json.dumps(found))
    else:
        typer.echo("\n".join(f"{name:<16} {reason or 'ready'}" for name, reason in found.items()))


@app.command()
def doctor(
    recipe: Annotated[str | None, typer.Argument(help="A recipe's file or name.")] = None,
    config: Annotated[Path | None, typer.Option(help="accelerate's config file.")] = None,
    deepspeed: Annotated[Path | None, typer.Option(help="DeepSpeed's config, of a dense pre-round.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="How many processes will take part.")] = None,
    engine: Annotated[str, typer.Option(help="ddp or fsdp2.")] = "ddp",
    out: Annotated[Path | None, typer.Option(help="The run's folder; by default runs/NAME.")] = None,
    settings: Set = None,
    as_json: AsJson = False,
) -> None:
    """Check a launch before it waits in a queue; status 2 where something is wrong."""
    from sparseflow import ranks
    from sparseflow.doctor import Launch, examine, failed, table

    with own_output():
        found = examine(Launch(recipe, settings or [], config, deepspeed, processes, engine, out), ranks.current())
    if ranks.current().main:
        rows = [finding.to_json() for finding in found]
        typer.echo(json.dumps(rows, indent=2) if as_json else table(found))
    if failed(found):
        raise typer.Exit(2)


# Commands that have a file of their own.
app.command()(compare)
app.command(name="import")(import_weights)
app.command()(reproduce)
app.command()(theory)


def main() -> None:
    """The entry point: a wrong input is one line and status 2, without a traceback."""
    # A recipe may name `module:function` beside it; a console script does not look there by itself.
    if "" not in sys.path:
        sys.path.insert(0, "")
    traceback = "--traceback" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--traceback"]
    try:
        app()
    except (ValueError, TypeError) as error:
        if traceback:
            raise
        print(f"sparseflow: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except (FloatingPointError, OSError) as error:
        # OSError: above all a full disk, with what was saved before it intact.
        if traceback:
            raise
        print(f"sparseflow: {error}", file=sys.stderr)
        sys.exit(1)


def _run(
    recipe: str, out: Path | None, settings: list[str], plan: Path | None, resume: bool, replan: bool
) -> tuple[Path, dict[str, Any]]:
    from sparseflow import replay, results, runs
    from sparseflow.display import make_display
    from sparseflow.recipes import load_recipe
    from sparseflow.training.trainer import Stopped
    from sparseflow.workers import STOPPED, run_all

    chosen = load_recipe(recipe, settings)
    folder = out or Path("runs") / chosen.name
    found = runs.open_run(folder, chosen, resume)
    replayed = None if plan is None else replay.read_plans(plan, chosen)
    runs.make_local(chosen.data, _say)
    task = runs.check(chosen)
    started = time.monotonic() - runs.begin(found, replan)
    networks = runs.trainings(chosen)
    with (
        open(folder / "metrics.jsonl", "a") as metrics,
        make_display(chosen.seeds, networks, chosen.training.steps) as display,
    ):

        def listen(event: dict[str, Any]) -> None:
            metrics.write(json.dumps(event) + "\n")
            metrics.flush()
            display.show(event)

        try:
            run_all(found, listen, replayed, replan)
        except Stopped as stopped:
            runs.note_stop(found, STOPPED, "signal", stopped.step, time.monotonic() - started)
            typer.echo(f"stopped; go on with: {runs.resume_command(found, plan)}", err=True)
            raise typer.Exit(STOPPED) from None
        except (ValueError, TypeError, FloatingPointError, RuntimeError, OSError) as error:
            status = 2 if isinstance(error, (ValueError, TypeError)) else 1
            runs.note_stop(found, status, str(error), None, time.monotonic() - started)
            raise
    result = results.finish(found, task, started)
    return folder, result


def _predict(validate: bool, workload: Path | None, targets: list[Path], as_json: bool) -> None:
    from sparseflow.bench.stream import bench_stream

    found = bench_stream(validate, workload)
    for path in targets:
        path.write_text(json.dumps(found, indent=2) + "\n")
    typer.echo(json.dumps(found) if as_json else found["text"])


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _text(found: dict[str, Any]) -> str:
    layers = found.pop("layers", {})
    lines = [f"{key}: {value}" for key, value in found.items()]
    lines += [
        f"  {name:<32} {row['shape']!s:<20} {row['kept']:>12,} kept  {row['density']:.3%}"
        for name, row in layers.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
