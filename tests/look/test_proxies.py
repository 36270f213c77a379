"""Proxies are made ahead of the page, in bounded memory, and never while somebody waits."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from patience import DEADLINE

import gsio
from gsio.config import Config
from gsio.look import proxies as module
from gsio.look.proxies import Proxies, Wanted
from gsio.look.source import Snapshot, from_stack
from gsio.testing import small_blocks

Make = Callable[..., Config]


@pytest.fixture
def now(make_config: Make, tmp_path: Path) -> Snapshot:
    with small_blocks():
        gsio.simulate(make_config({"run.frames": 75, "initial.kind": "noise"}), tmp_path / "run.h5")
    return from_stack(tmp_path / "run.h5")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> "Made":
    return Made(monkeypatch)


class Made:
    """The groups whose proxies are made in other threads than that of the test, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.groups: list[int] = []
        self.before: Callable[[], object] = lambda: None
        self._changed, make = threading.Condition(), module.make_proxies

        def made(now: Snapshot, field: str, member: int, frames: range) -> list[bytes]:
            if threading.current_thread() is not threading.main_thread():
                self.before()
                with self._changed:
                    if frames.start // 16 not in self.groups:
                        self.groups.append(frames.start // 16)
                    self._changed.notify_all()
            return make(now, field, member, frames)

        monkeypatch.setattr(module, "make_proxies", made)

    def wait(self, count: int) -> None:
        """Wait until `count` groups have been begun."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.groups) >= count, DEADLINE)


def work(proxies: Proxies) -> threading.Thread:
    thread = threading.Thread(target=proxies.work_ahead)
    thread.start()
    return thread


def test_the_groups_after_the_one_asked_for_come_first(now: Snapshot, made: Made) -> None:
    proxies = Proxies()
    assert proxies.ready(now) == 0
    proxies.group(Wanted(now, "v", 0, 2))
    assert proxies.ready(now) == 16
    thread = work(proxies)
    made.wait(4)
    proxies.stop()
    thread.join(DEADLINE)
    assert made.groups == [3, 4, 0, 1]
    assert proxies.ready(now) == 75


def test_the_newest_full_groups_come_first_while_a_run_computes(now: Snapshot, made: Made) -> None:
    proxies = Proxies(is_computing=lambda: True)
    proxies.group(Wanted(now, "v", 0, 1))
    thread = work(proxies)
    made.wait(3)
    proxies.stop()
    thread.join(DEADLINE)
    assert made.groups == [3, 2, 0]  # group 4 is not full


def test_nothing_is_begun_ahead_while_a_request_is_answered(now: Snapshot, made: Made) -> None:
    proxies, waiting, early = Proxies(), threading.Event(), []
    made.before = lambda: early.append(1) if waiting.is_set() else None
    waiting.set()
    with proxies.answering():
        thread = work(proxies)
        for group in range(4):  # each tells the thread that there is work
            proxies.group(Wanted(now, "v", 0, group))
        waiting.clear()
    made.wait(1)
    proxies.stop()
    thread.join(DEADLINE)
    assert early == []
    assert made.groups == [4]


def test_what_is_kept_has_a_bound(now: Snapshot) -> None:
    one = len(Proxies().group(Wanted(now, "v", 0, 0)))
    proxies = Proxies(most_nbytes=2 * one + one // 2)
    for group in (0, 1, 2, 3, 1):
        assert proxies.group(Wanted(now, "v", 0, group)) == Proxies().group(Wanted(now, "v", 0, group))
        assert proxies.nbytes <= 2 * one + one // 2
    assert 16 <= proxies.ready(now) <= 48


def test_a_group_that_grows_is_made_again(now: Snapshot, make_config: Make, tmp_path: Path) -> None:
    proxies, each = Proxies(), 8 + 12 * 17
    before = proxies.group(Wanted(now, "v", 0, 4))
    with small_blocks():
        gsio.simulate(make_config({"run.frames": 80, "initial.kind": "noise"}), tmp_path / "run.h5", resume="must")
    grown = from_stack(tmp_path / "run.h5")
    proxies.follow(grown)
    after = proxies.group(Wanted(grown, "v", 0, 4))
    assert [len(module.isal_zlib.decompress(part)) for part in (before, after)] == [11 * each, 16 * each]
