"""The seeds of a run side by side: a process each, their events in one stream, their signals passed on."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import torch

from sparseflow.replay import Plans
from sparseflow.runs import Run, run_seed, worker_threads
from sparseflow.training.trainer import Listener, Stopped

# Exit status of a worker that a signal stopped, with what it reached saved (sysexits.h: EX_TEMPFAIL).
STOPPED = 75
_WRONG_INPUT = 2
_HANDLED = (signal.SIGTERM, signal.SIGINT)


class WorkerError(RuntimeError):
    """A seed's process ended with an error; its traceback is the text."""


class StopFlag:
    """Set by the first SIGTERM or SIGINT; a second one ends the process at once.

    A second one that comes within `together` seconds is the first one's echo: launchers pass signals on that
    schedulers send to every process.
    """

    def __init__(self, together: float = 0.0) -> None:
        self.signal: int | None = None
        self.on_stop: Callable[[], None] = lambda: None
        self._together, self._since = together, 0.0

    def __call__(self) -> bool:
        return self.signal is not None

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handles the two signals inside. Only the main thread can: elsewhere it does nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # Python runs handlers between its own instructions, and the main thread may wait for another rank in a call
        # that does not end. So a thread hears of signals, from the bytes that Python's inner handler writes at once.
        receiver, sender = socket.socketpair()
        sender.setblocking(False)
        before_fd = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        before = {number: signal.signal(number, lambda number, frame: None) for number in _HANDLED}
        listening = threading.Thread(target=self._listen, args=(receiver,), daemon=True)
        listening.start()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before_fd)
            sender.close()
            listening.join()
            receiver.close()

    def _listen(self, receiver: socket.socket) -> None:
        while numbers := receiver.recv(64):
            for number in numbers:
                if number in _HANDLED:
                    self._handle(number)

    def _handle(self, number: int) -> None:
        if self.signal is None:
            self.signal, self._since = number, time.monotonic()
            self.on_stop()
        elif time.monotonic() - self._since >= self._together:
            os._exit(128 + number)


def run_all(run: Run, listener: Listener, plans: Plans | None = None, replan: bool = False) -> None:
    """Runs every seed of the recipe, `workers` of them at a time, until all are done.

    Raises Stopped when a signal asked for it (each seed has saved what it reached), ValueError where the input was
    wrong, and WorkerError for anything else that ended a seed.
    """
    flag = StopFlag()
    with flag.installed():
        if min(run.recipe.workers, len(run.recipe.seeds)) == 1:
            for seed in run.recipe.seeds:
                _run_here(run, seed, listener, flag, plans, replan)
        else:
            _run_beside(run, listener, flag, plans, replan)


def _run_here(
    run: Run, seed: int, listener: Listener, flag: Callable[[], bool], plans: Plans | None, replan: bool
) -> None:
    with tuned(worker_threads(run.recipe)):
        run_seed(run, seed, listener, flag, plans, replan)


@contextlib.contextmanager
def tuned(threads: int) -> Iterator[None]:
    """The process as training wants it: so many threads, denormals flushed to zero, nothing for the collector to do."""
    before = torch.get_num_threads()
    # Moments of weights that see no input decay into denormals, which cost a hundred times a normal number.
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)
    # What is imported by now stays: the garbage collector need not look through all of torch again and again.
    gc.freeze()
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(False)
        gc.unfreeze()


@dataclass
class _Worker:
    process: SpawnProcess
    events: Connection
    # Whether it has said how it ended.
    reported: bool = False


def _run_beside(run: Run, listener: Listener, flag: StopFlag, plans: Plans | None, replan: bool) -> None:
    waiting = deque(run.recipe.seeds)
    working: list[_Worker] = []
    ended: list[dict[str, Any]] = []
    flag.on_stop = lambda: _terminate(working)
    try:
        while working or (waiting and not flag() and not ended):
            while waiting and len(working) < run.recipe.workers and not flag() and not ended:
                working.append(_start(run, waiting.popleft(), plans, replan))
            for worker in _ready(working):
                _read(worker, working, listener, ended, flag)
            if ended:
                # One seed's end ends the run; the others save what they have.
                _terminate(working)
    finally:
        for worker in working:
            worker.process.kill()
    end(ended, flag)


def _start(run: Run, seed: int, plans: Plans | None, replan: bool) -> _Worker:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(run, seed, sender, plans, replan), daemon=True)
    process.start()
    sender.close()
    return _Worker(process, receiver)


def _ready(working: list[_Worker]) -> list[_Worker]:
    found = wait([worker.events for worker in working], timeout=1.0)
    return [worker for worker in working if worker.events in found]


def _read(
    worker: _Worker, working: list[_Worker], listener: Listener, ended: list[dict[str, Any]], flag: StopFlag
) -> None:
    try:
        event = worker.events.recv()
    except EOFError:
        worker.process.join()
        working.remove(worker)
        status = worker.process.exitcode
        if status != 0 and not worker.reported:
            # A signal that comes while a worker still imports ends it at once, before it has anything to save.
            stopped = flag() or bool(ended)
            text = f"a worker ended with status {status}"
            ended.append({"event": "stopped", "step": 0} if stopped else {"event": "error", "text": text})
        return
    if event["event"] in ("error", "diverged", "wrong input", "stopped"):
        worker.reported = True
        ended.append(event)
    else:
        listener(event)


def _terminate(working: list[_Worker]) -> None:
    for worker in working:
        worker.process.terminate()


def _stop_once(flag: StopFlag) -> None:
    # The same signal can come twice, from our parent and from a scheduler that signals every process: unlike in the
    # parent, the second one must not cut short what the first one began.
    def handle(number: int, frame: object) -> None:
        flag.signal = number

    signal.signal(signal.SIGTERM, handle)


def end(ended: list[dict[str, Any]], flag: StopFlag) -> None:
    """Raises what the ends of the workers, in order, mean for their run: ValueError, FloatingPointError, Stopped …"""
    # The first to fail is the cause; what the others meet while they are made to stop may only follow from it.
    failed = next((event for event in ended if event["event"] != "stopped"), None)
    if failed is not None:
        kinds = {"wrong input": ValueError, "diverged": FloatingPointError, "error": WorkerError}
        raise kinds[failed["event"]](failed["text"])
    if ended or flag():
        raise Stopped(ended[0]["step"] if ended else 0)


def _work(run: Run, seed: int, events: Connection, plans: Plans | None, replan: bool) -> None:
    # Ctrl-C reaches every process of the terminal; the parent passes on what is meant for us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Standard output is the parent's, for results.
    sys.stdout = sys.stderr
    flag = StopFlag()
    _stop_once(flag)
    status = 0
    try:
        _run_here(run, seed, events.send, flag, plans, replan)
    except Stopped as stopped:
        status = STOPPED
        events.send({"event": "stopped", "seed": seed, "step": stopped.step})
    except (ValueError, TypeError) as error:
        status = _WRONG_INPUT
        events.send({"event": "wrong input", "seed": seed, "text": str(error)})
    except FloatingPointError as error:
        status = 1
        events.send({"event": "diverged", "seed": seed, "text": f"seed {seed}: {error}"})
    except BaseException:
        status = 1
        events.send({"event": "error", "seed": seed, "text": f"seed {seed}: {traceback.format_exc()}"})
    events.close()
    raise SystemExit(status)
