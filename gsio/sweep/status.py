"""How far a sweep is, from the states of its members and the status files of the runs that go on."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsio.errors import DivergenceError, Interrupted
from gsio.log import log
from gsio.run.progress import LOG_SECONDS, shown
from gsio.run.status import is_written
from gsio.sweep.description import coordinate
from gsio.sweep.pieces import runs_of
from gsio.sweep.plan import Plan, Task, read_plan
from gsio.sweep.result import State, read_states
from gsio.sweep.tasks import missing
from gsio.writer.status_file import read_status


@dataclass(frozen=True)
class Running:
    """A task that is computed now: its members are not in the result yet."""

    task: Task
    frame: int


@dataclass(frozen=True)
class Status:
    """How far a sweep is.

    Attributes
    ----------
    plan
        The sweep.
    states, frames
        The state, and the number of frames, of each member, [member].
    left
        The tasks with members that are not there yet.
    running
        The tasks that are computed now.
    """

    plan: Plan
    states: NDArray[np.uint8]
    frames: NDArray[np.int32]
    left: list[Task]
    running: list[Running]

    def counts(self) -> dict[str, int]:
        """Return how many members are in each state; members that are computed now are "running"."""
        counts = {state.name.lower(): int((self.states == state).sum()) for state in State}
        running = sum(int((self.states[list(run.task.members)] == State.PENDING).sum()) for run in self.running)
        pending = counts.pop("pending") - running
        return {**counts, "running": running, "pending": pending}

    @property
    def done(self) -> float:
        """The share of all frames that are there, from 0 to 1; a member that diverged has all that it can have."""
        frames = self.plan.config.run.frames
        there = int((self.states != State.PENDING).sum()) * frames
        there += sum(run.frame * len(run.task.members) for run in self.running)
        return min(1.0, there / (self.plan.count * frames))

    def check(self, output: Path) -> None:
        """Raise an error, for the exit code of a command, unless all members are complete."""
        counts = self.counts()
        if missing := counts["running"] + counts["pending"]:
            raise Interrupted(f"{missing} of {self.plan.count} members are missing; the same command goes on with them")
        if counts["diverged"] + counts["failed"]:
            words = " and ".join(f"{counts[name]} {name}" for name in ("diverged", "failed") if counts[name])
            raise DivergenceError(
                f"of {self.plan.count} members, {words}, and the others are complete; see 'gsio sweep status {output}'"
            )

    def lines(self) -> list[str]:
        """Return the status as a table for a person."""
        counts = ", ".join(f"{number} {name}" for name, number in self.counts().items() if number)
        found = [f"{self.plan.count} members: {counts}; {len(self.left)} of {len(self.plan.tasks)} tasks are left"]
        frames = self.plan.config.run.frames
        found += [
            f"  task {run.task.number:<6} running   {run.frame} of {frames} frames of {len(run.task.members)} members"
            for run in self.running
        ]
        for state in (State.DIVERGED, State.FAILED):
            found += [
                f"  {state.name.lower():<11} {self.plan.name(int(member))}, after {self.frames[member]} frames"
                for member in np.flatnonzero(self.states == state)
            ]
        return found

    def as_json(self) -> dict[str, Any]:
        """Return the status, with each member, in the types of JSON."""
        names = {coordinate(key, self.plan.keys): key for key in self.plan.keys}
        running = {member for run in self.running for member in run.task.members}
        members = []
        for member in range(self.plan.count):
            values, state = self.plan.values(member), State(int(self.states[member]))
            word = "running" if member in running and state == State.PENDING else state.name.lower()
            known = {name: values[key] for name, key in names.items()}
            members.append({"member": member, **known, "state": word, "frames": int(self.frames[member])})
        tasks = [
            {"task": run.task.number, "members": list(run.task.members), "frame": run.frame} for run in self.running
        ]
        return {
            "members": self.plan.count, "frames": self.plan.config.run.frames, "counts": self.counts(),
            "tasks": len(self.plan.tasks), "tasks_left": len(self.left), "running": tasks, "member": members,
        }  # fmt: skip


def status_of_sweep(output: Path, plan: Plan | None = None) -> Status:
    """Return how far the sweep of a result is; no frame is read. Raises DataError if `output` is no such result."""
    plan = plan or read_plan(output)
    left = missing(plan, output)
    running, begun = [], runs_of(output)
    for task in left:
        known = [s for path in begun.get(task.number, ()) if is_written(path, s := read_status(path))]
        if known:
            running.append(Running(task, int(known[-1]["frame"])))
    states = read_states(output)
    return Status(plan, states["status"], states["frames"], left, running)


@contextmanager
def sweep_progress(*, quiet: bool) -> Iterator[Callable[[Status], object]]:
    """Show how far a sweep is while this context lasts; give the function to call with each new status.

    A terminal shows a bar for each task and one for all. Elsewhere a line tells each task that has ended, and another
    how far the sweep is, every ten seconds.
    """
    with shown(_bars, _events, quiet=quiet) as show:
        yield show


@contextmanager
def _bars() -> Iterator[Callable[[Status], object]]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        whole = bars.add_task("sweep", total=1.0)
        known: dict[int, Any] = {}  # the bar of each task

        def show(status: Status) -> None:
            bars.update(whole, completed=status.done)
            running = {run.task.number: run for run in status.running}
            for number in [number for number in known if number not in running]:
                bars.remove_task(known.pop(number))
            for number, run in running.items():
                if number not in known:
                    known[number] = bars.add_task(f"task {number}", total=status.plan.config.run.frames)
                bars.update(known[number], completed=run.frame)

        yield show


def _events() -> Callable[[Status], object]:
    due = time.monotonic() + LOG_SECONDS
    before: set[int] = set()

    def show(status: Status) -> None:
        nonlocal due, before
        pending = {task.number for task in status.left}
        for number in sorted(before - pending):
            members = list(status.plan.tasks[number].members)
            complete = int((status.states[members] == State.COMPLETE).sum())
            log.info("task finished", task=number, members=len(members), complete=complete)
        before = pending
        if time.monotonic() > due:
            due = time.monotonic() + LOG_SECONDS
            log.info("progress", share=f"{status.done:.1%}", **status.counts())

    return show
