"""The memory and the cores that a process may take."""

import os
from pathlib import Path

import pytest

from gsio.machine import available_memory, usable_cores

GB = 10**9


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 100 GB available, and where its control groups are, of which there are none yet."""
    monkeypatch.setattr("gsio.machine.CGROUPS", tmp_path / "groups")
    monkeypatch.setattr("gsio.machine.OWN_CGROUPS", tmp_path / "own")
    (tmp_path / "meminfo").write_text(f"MemTotal:       128000000 kB\nMemAvailable:   {100 * GB // 1024} kB\n")
    monkeypatch.setattr("gsio.machine.MEMINFO", tmp_path / "meminfo")
    return tmp_path


def make_group(folder: Path, limit: str, taken: int, kept: int, version: int = 2) -> None:
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{taken}\n")
    (folder / "memory.stat").write_text(f"anon 12\n{names[2]} {kept}\n")


def test_without_control_groups_it_is_what_the_machine_has(machine: Path) -> None:
    assert available_memory() == 100 * GB
    (machine / "own").write_text("0::/job/step\n")
    assert available_memory() == 100 * GB


def test_a_job_may_take_what_its_group_and_those_above_leave(machine: Path) -> None:
    (machine / "own").write_text("0::/job/step\n")
    make_group(machine / "groups/job/step", "max", 5 * GB, 0)
    assert available_memory() == 100 * GB
    make_group(machine / "groups/job", str(32 * GB), 20 * GB, 4 * GB)  # files that were read take what is left
    assert available_memory() == 16 * GB
    make_group(machine / "groups/job/step", str(8 * GB), 5 * GB, 0)
    assert available_memory() == 3 * GB
    make_group(machine / "groups/job/step", str(8 * GB), 9 * GB, 0)
    assert available_memory() == 0


def test_version_1_has_other_names(machine: Path) -> None:
    (machine / "own").write_text("4:memory:/slurm/job_7\n2:cpuacct:/\n0::/\n")
    make_group(machine / "groups/memory/slurm/job_7", str(2**63 - 4096), 3 * GB, GB, version=1)
    assert available_memory() == 100 * GB
    make_group(machine / "groups/memory/slurm", str(6 * GB), 3 * GB, GB, version=1)
    assert available_memory() == 4 * GB
    make_group(machine / "groups/job", str(GB), 0, 0)  # of another
    assert available_memory() == 4 * GB


def test_a_process_has_the_cores_of_its_affinity_and_of_its_quota(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    assert usable_cores() == 16
    (machine / "own").write_text("0::/pod/container\n")
    group = machine / "groups/pod/container"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("max 100000\n")
    assert usable_cores() == 16
    (group.parent / "cpu.max").write_text("250000 100000\n")
    assert usable_cores() == 2
    (group / "cpu.max").write_text("50000 100000\n")
    assert usable_cores() == 1


@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct"])
def test_version_1_has_other_names_for_the_quota(
    controllers: str, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    (machine / "own").write_text(f"3:{controllers}:/job\n")
    group = machine / "groups" / controllers / "job"
    group.mkdir(parents=True)
    (group / "cpu.cfs_period_us").write_text("100000\n")
    (group / "cpu.cfs_quota_us").write_text("-1\n")
    assert usable_cores() == 16
    (group / "cpu.cfs_quota_us").write_text("400000\n")
    assert usable_cores() == 4
