"""A task: an ordinary run of its members, which goes on where a kill has ended it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace

from gsio.errors import DataError, DivergenceError, UsageError
from gsio.log import log
from gsio.reader import open_stack
from gsio.run.simulate import simulate
from gsio.sweep.pieces import Piece, clean, halves, keep, left_behind, run_path
from gsio.sweep.plan import Plan, Task, locked, read_plan
from gsio.sweep.result import State, read_states, set_states

FINAL = [State.COMPLETE, State.DIVERGED]  # a member that failed is tried again


class Ended(NamedTuple):
    """A run that has ended, and the state in which it leaves its members."""

    piece: Piece
    state: State


def missing(plan: Plan, output: Path, tasks: Sequence[Task] | None = None) -> list[Task]:
    """Return those of `tasks`, by default of all, with members that are not there yet."""
    status = read_states(output)["status"]
    final = np.isin(status, FINAL)
    return [task for task in (plan.tasks if tasks is None else tasks) if not final[list(task.members)].all()]


def run_tasks(output: Path, numbers: Sequence[int] = (), *, device: int | None = None) -> None:
    """Compute the tasks with these numbers, or all, as far as they are missing and nobody else computes them.

    Raises
    ------
    DataError
        `output` is not the result of a sweep.
    UsageError
        There is no task of that number.
    StorageError, Interrupted
        A run ended early; what is committed is safe, and the task goes on when it is run again.
    """
    plan = read_plan(output)
    wanted = [plan.tasks[number] for number in numbers if number < len(plan.tasks)]
    if len(wanted) < len(numbers):
        raise UsageError(f"expected numbers of tasks below {len(plan.tasks)}, got {max(numbers)}")
    left, behind = set(missing(plan, output)), left_behind(output)
    for task in wanted or plan.tasks:
        if task not in left and task.number not in behind:
            continue
        with locked(output, task.number) as alone:
            if alone and missing(plan, output, [task]):  # nobody has computed it meanwhile
                _run_task(plan, output, task, device)
            elif alone and task.number in behind:  # a kill came between the last two steps of the task
                clean(output, task)


def _run_task(plan: Plan, output: Path, task: Task, device: int | None) -> None:
    """Compute a task, and let the result show its members; raises StorageError and Interrupted as a run does."""
    ended = list(_runs(plan, output, task, task.members, "", device))
    keep(plan, output, task, [end.piece for end in ended])
    set_states(output, ((member, end.state, end.piece.frames) for end in ended for member in end.piece.members))
    if all(end.state in FINAL for end in ended):
        clean(output, task)
    complete = sum(len(end.piece.members) for end in ended if end.state == State.COMPLETE)
    log.info("task finished", task=task.number, members=len(task.members), complete=complete)


def _runs(
    plan: Plan, output: Path, task: Task, members: tuple[int, ...], part: str, device: int | None
) -> Iterator[Ended]:
    """Compute members together; if that fails, compute each half of them, until each fault is that of one member."""
    config, path = plan.run_of(members), run_path(output, task, part)
    if device is not None:
        config = replace(config, run=replace(config.run, device=device, devices=""))
    state, frames = State.COMPLETE, plan.config.run.frames
    try:
        simulate(config, path, resume="auto", cut=plan.cut_of(len(members)))
    except (DivergenceError, UsageError, DataError) as error:
        if len(members) > 1:
            log.info(f"{error}; each half of the {len(members)} members is computed alone", task=task.number)
            for bit, half in enumerate(halves(members)):
                yield from _runs(plan, output, task, half, f"{part or '-'}{bit}", device)
            return
        log.warning(f"{plan.name(members[0])}: {error}")
        state = State.DIVERGED if isinstance(error, DivergenceError) else State.FAILED
        frames = _committed(path) if state == State.DIVERGED else 0
    yield Ended(Piece(path, members, frames), state)


def _committed(path: Path) -> int:
    with open_stack(path) as stack:
        return int(stack.frames)
