"""A page follows the outputs: they grow, end, are killed, replaced and deleted while it is open."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from client import Client

import gsio
from gsio.config import Config
from gsio.look.serve import Server, listen

Make = Callable[..., Config]
# A run with blocks of four frames, which waits for a line on stdin once it has committed the first.
RUN = """
import sys
import gsio
from gsio.testing import small_blocks
from gsio.writer import session

def open_writer(target, opened=session.open_writer):
    def commit(blocks):
        for block in blocks:
            commit_all([block])
            if not heard:
                heard.append(input())

    writer, heard = opened(target), []
    commit_all, writer.commit = writer.commit, commit
    return writer

session.open_writer = open_writer
frame = 12 * 17 * 4
small_blocks(4 * frame, 2 * frame)
gsio.simulate(gsio.Config.from_toml(sys.argv[1]), sys.argv[2], overwrite=True)
"""
CHANGES = {"run.frames": 60, "run.steps_per_frame": 1, "initial.kind": "noise"}


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    paths = [tmp_path / name for name in getattr(request, "param", ["run.h5"])]
    with Server(paths, listen(), wait=True) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Client:
    return Client(server.port, server.token)


@contextmanager
def run(config: Config, path: Path) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", RUN, config.to_toml(), str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def go_on(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def until(events: Iterator[tuple[str, Any]], true: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return the first state of an output for which something is true."""
    return next(output for name, output in events if name == "output" and true(output))


def is_running(output: dict[str, Any]) -> bool:
    return bool(output["state"] == "running" and output["frames"])


@pytest.mark.parametrize("server", [["run.h5"], ["run.zarr"]], indirect=True, ids=["HDF5", "Zarr"])
def test_frames_are_announced_and_exact_while_a_run_goes_on(server: Server, client: Client, make_config: Make) -> None:
    path = server.sources[0].path
    config = make_config({**CHANGES, "output.compression": "auto"})
    with client.events() as events, run(config, path) as process:
        assert next(events)[1] == {
            "number": 0, "name": path.name, "state": "waiting", "frames": 0, "progress": {}, "proxied": 0
        }  # fmt: skip
        output = until(events, is_running)
        assert output["frames_total"] == 60
        assert output["progress"]["state"] == "running"
        assert "pid" not in output["progress"]
        early = {number: client.frame(output, "v", number) for number in range(output["frames"])}
        assert len(client.get("/outputs/0/proxies/v/0/0").body) == min(16, output["frames"]) * (8 + 12 * 17)
        series = client.get(f"/outputs/0/series?from={output['frames'] - 1}").json
        assert series["step"][0] == output["frames"]
        go_on(process)
        grown = [output["frames"]]
        while output["state"] == "running":
            output = until(events, lambda output: True)
            grown.append(output["frames"])
        assert process.wait() == 0
    assert output["state"] == "complete"
    assert grown == sorted(grown)
    assert grown[-1] == 60
    with gsio.open_stack(path) as stack:
        for number, frame in early.items():
            assert np.array_equal(frame[0], stack.v[number])
        assert np.array_equal(client.frame(output, "v", 59)[0], stack.v[59])


def test_a_killed_run_is_named_so_and_its_frames_stay(server: Server, client: Client, make_config: Make) -> None:
    with client.events() as events, run(make_config(CHANGES), server.sources[0].path) as process:
        before = client.frame(until(events, is_running), "v", 0)
        process.send_signal(signal.SIGKILL)
        output = until(events, lambda output: output["state"] != "running")
    assert output["state"] == "killed"
    assert np.array_equal(client.frame(output, "v", 0), before)


def test_a_torn_output_is_shown_by_its_journal(server: Server, client: Client, make_config: Make) -> None:
    path = server.sources[0].path
    with client.events() as events, run(make_config(CHANGES), path) as process:
        before = client.frame(until(events, is_running), "v", 0)
        process.send_signal(signal.SIGKILL)
        until(events, lambda output: output["state"] == "killed")
        with path.open("r+b") as file:
            file.write(bytes(96))  # the superblock: HDF5 cannot open the file
        output = until(events, lambda output: True)
    assert output["state"] == "killed"
    assert np.array_equal(client.frame(output, "v", 0), before)


@pytest.mark.parametrize("server", [["run.h5", "run.zarr"]], indirect=True)
def test_outputs_come_go_and_are_replaced(server: Server, client: Client, make_config: Make) -> None:
    first, second = (source.path for source in server.sources)
    config = make_config({"output.compression": "auto", "run.frames": 3})
    with client.events() as events, client.events() as others:
        gsio.simulate(config, first)
        gsio.simulate(config, second)
        before = until(events, lambda output: output["number"] == 0 and output["state"] == "complete")
        assert until(others, lambda output: output["number"] == 1 and output["state"] == "complete")["frames"] == 3
        gsio.simulate(make_config({"run.frames": 4}), first, overwrite=True)
        after = until(events, lambda output: output["number"] == 0 and output["frames"] == 4)
        assert after["group"] != before["group"]
        with gsio.open_stack(first) as stack:
            assert np.array_equal(client.frame(after, "v", 3)[0], stack.v[3])
        first.unlink()
        while next(events) != ("gone", {"number": 0}):
            pass
        assert next(events)[1]["state"] == "waiting"
        assert client.get("/outputs/0/chunk/v/0/0").status == 404
        assert client.get("/outputs/1/chunk/v/0/0").status == 200
        while next(others)[0] != "gone":
            pass


def test_a_file_that_takes_the_place_of_another_is_not_taken_for_it(
    server: Server, client: Client, make_config: Make
) -> None:
    path = server.sources[0].path
    config = make_config({"run.frames": 3})
    gsio.simulate(config, path)
    with client.events() as events:
        until(events, lambda output: output["state"] == "complete")
    now = server.sources[0].now
    assert now is not None
    path.replace(path.with_name("moved"))
    path.write_bytes(b"of another")
    with pytest.raises(OSError, match="another file has replaced this one"):
        now.fields["v"].encoded(0, 0)
