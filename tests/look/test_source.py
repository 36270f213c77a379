"""The bytes that the page gets are the stored values, whatever the format, the codec and the cut of an output."""

import html
import itertools
import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from client import Client
from cuts import CUTS, OUTPUTS, PLANE

import gsio
from gsio.cli import main
from gsio.config import Config
from gsio.errors import Interrupted
from gsio.look.proxies import make_proxies
from gsio.look.serve import Server, listen
from gsio.look.source import Source, from_stack
from gsio.run.progress import Progress
from gsio.testing import small_blocks

Make = Callable[..., Config]
STORES = [
    *(("run.h5", store) for store in ("float32", "uint16", "uint8")),
    *(("run.zarr", store) for store in ("float32", "float16", "uint16", "uint8")),
]
NOISE = {"initial.kind": "noise", "run.frames": 20, "output.fields": "u,v"}


@pytest.fixture
def show() -> Iterator[Callable[..., Client]]:
    """Return a function that serves outputs until the end of the test, and gives a client who may ask."""
    servers: list[Server] = []

    def shown(*paths: Path, **options: Any) -> Client:
        servers.append(Server(paths, listen(), **options).__enter__())
        return Client(servers[-1].port, servers[-1].token)

    yield shown
    for server in servers:
        server.__exit__(None, None, None)


def check_exact(client: Client, path: Path) -> None:
    """Compare all that the page gets of an output with what `open_stack` reads."""
    output = client.output()
    with gsio.open_stack(path) as stack:
        assert output["frames"] == stack.frames
        assert output["fields"] == list(stack.fields)
        series = client.get("/outputs/0/series?from=3").json
        assert series["step"] == stack.series("step")[3:].tolist()
        for name, values in series["stats"].items():
            assert values == stack.series(f"stats/{name}")[3:].tolist()
        for field in output["fields"]:
            expected = np.asarray(stack.fields[field]).reshape(stack.frames, -1, output["rows"], output["cols"])
            for number, frame in enumerate(expected):
                assert client.frame(output, field, number).tobytes() == frame.tobytes()
            check_window(client, output, field, expected)
            check_point(client, field, expected)
            check_proxies(client, output, field, expected)


def check_window(client: Client, output: dict[str, Any], field: str, expected: np.ndarray) -> None:
    member, frame = len(expected[0]) - 1, len(expected) - 2
    body = client.get(f"/outputs/0/window/{field}/{member}/{frame}/1:12:2/3:17:5").body
    assert body == expected[frame, member, 1:12:2, 3:17:5].tobytes()


def check_point(client: Client, field: str, expected: np.ndarray) -> None:
    member, found = len(expected[0]) - 1, {}
    with client.events(f"/outputs/0/point/{field}/{member}/11/4") as events:
        for name, values in events:
            if name == "done":
                break
            found |= dict(zip(values["frames"], values["values"], strict=True))
    assert [found[frame] for frame in range(len(expected))] == expected[:, member, 11, 4].tolist()


def check_proxies(client: Client, output: dict[str, Any], field: str, expected: np.ndarray) -> None:
    member, size = len(expected[0]) - 1, output["proxy"]["group"]
    rows, cols = output["proxy"]["rows"], output["proxy"]["cols"]
    factor = -(-output["rows"] // rows)
    body = b"".join(
        client.get(f"/outputs/0/proxies/{field}/{member}/{group}").body for group in range(-(-len(expected) // size))
    )
    each = 8 + rows * cols
    assert len(body) == each * len(expected)
    assert client.get(f"/outputs/0/proxy/{field}/{member}/17").body == body[17 * each : 18 * each]
    for number, frame in enumerate(expected[:, member].astype(float)):
        here = body[number * each : (number + 1) * each]
        low, high = struct.unpack("<ff", here[:8])
        found = low + np.frombuffer(here[8:], np.uint8).reshape(rows, cols) / 255 * (high - low)
        means = [[part.mean() for part in parts(line.T, factor)] for line in parts(frame, factor)]
        assert found == pytest.approx(np.array(means), abs=0.51 / 255 * (high - low) + 1e-6)


def parts(array: np.ndarray, size: int) -> list[np.ndarray]:
    return [array[start : start + size] for start in range(0, len(array), size)]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(("name", "compression"), OUTPUTS)
@pytest.mark.parametrize("feed", [0.03, [0.03, 0.04, 0.05]], ids=["alone", "batch"])
def test_every_value_is_exact_however_it_is_stored(
    name: str, compression: str, feed: Any, cut: str, make_config: Make, tmp_path: Path, show: Callable[..., Client]
) -> None:
    chunk, block, large, slab = CUTS[cut]
    with small_blocks(block, chunk, large_bytes=large, slab_bytes=slab):
        gsio.simulate(make_config({**NOISE, "output.compression": compression, "model.feed": feed}), tmp_path / name)
    check_exact(show(tmp_path / name), tmp_path / name)


@pytest.mark.parametrize(("name", "store"), STORES)
def test_every_stored_type_is_exact(
    name: str, store: str, make_config: Make, tmp_path: Path, show: Callable[..., Client]
) -> None:
    changes = {**NOISE, "output.store": store, "output.compression": "auto"}
    for precision in ("float32", "float64"):
        path = tmp_path / precision / name
        path.parent.mkdir()
        gsio.simulate(make_config({**changes, "model.precision": precision}), path)
        check_exact(show(path), path)


def test_shards_levels_and_exports_are_exact(make_config: Make, tmp_path: Path, show: Callable[..., Client]) -> None:
    path = tmp_path / "run.zarr"
    changes = {"output.shard_frames": 8, "output.pyramid": 1, "output.compression": "zstd"}
    with small_blocks():
        gsio.simulate(make_config({**NOISE, **changes}), path)
    check_exact(show(path), path)
    for part in ("part.h5", "part.zarr"):
        assert main(["export", str(path), str(tmp_path / part), "-q"]) == 0
        check_exact(show(tmp_path / part), tmp_path / part)
    assert main(["export", str(path), str(tmp_path / "crop.h5"), "-q", "--crop=2:9,3:14", "--frames=3:9"]) == 0
    output = show(tmp_path / "crop.h5").output()
    assert [output[name] for name in ("rows", "cols", "frames", "frames_total")] == [7, 11, 6, 6]


def test_a_proxy_is_the_mean_of_boxes_and_those_at_the_edges_are_smaller(
    make_config: Make, tmp_path: Path, show: Callable[..., Client]
) -> None:
    path = tmp_path / "run.h5"
    size = {"grid.rows": 7, "grid.cols": 1443, "initial.kind": "noise", "run.frames": 2}
    gsio.simulate(make_config(size), path)
    client = show(path)
    output = client.output()
    assert output["proxy"] == {"rows": 2, "cols": 361, "group": 16}
    body = client.get("/outputs/0/proxy/v/0/1").body
    low, high = struct.unpack("<ff", body[:8])
    with gsio.open_stack(path) as stack:
        frame = stack.v[1]
    means = np.array([[part.mean() for part in parts(line.T, 4)] for line in parts(frame, 4)])
    assert (low, high) == pytest.approx((means.min(), means.max()), rel=1e-6)
    found = low + np.frombuffer(body[8:], np.uint8).reshape(means.shape) / 255 * (high - low)
    assert np.abs(found - means).max() <= 0.51 / 255 * (high - low)


def test_a_frame_that_cannot_be_read_is_refused_and_the_others_are_not(
    make_config: Make, tmp_path: Path, show: Callable[..., Client]
) -> None:
    path = tmp_path / "run.zarr"
    with small_blocks(4 * PLANE, PLANE):
        gsio.simulate(make_config({**NOISE, "output.compression": "zstd"}), path)
    (path / "v" / "c.3.0.0").unlink()
    (path / "v" / "c.4.0.0").write_bytes(b"damaged")
    client = show(path)
    for number in (3, 4):
        for address in (f"chunk/v/{number}/0", f"proxy/v/0/{number}", f"window/v/0/{number}/0:12:1/0:17:1"):
            refused = client.get(f"/outputs/0/{address}")
            assert refused.status == 410
            assert refused.body.decode().startswith("the frame cannot be read: ")
            assert str(tmp_path) not in refused.body.decode()
    lows = [low for low, _ in struct.iter_unpack(f"<f{4 + 12 * 17}s", client.get("/outputs/0/proxies/v/0/0").body)]
    assert [number for number, low in enumerate(lows) if np.isnan(low)] == [3, 4]
    assert client.get("/outputs/0/chunk/v/5/0").status == 200
    with client.events("/outputs/0/point/v/0/1/1") as events:
        found = dict(zip(*next(events)[1].values(), strict=True))
    assert found[3] is found[4] is None
    assert found[5] is not None


def test_values_that_are_not_finite_are_shown_as_nothing(
    make_config: Make, tmp_path: Path, show: Callable[..., Client]
) -> None:
    import h5py

    path = tmp_path / "run.h5"
    gsio.simulate(make_config({"output.compression": "none", "initial.kind": "noise"}), path)
    with h5py.File(path, "r+") as file:
        file["v"][1, 2, 3] = np.nan
        file["v"][2] = np.inf
    client = show(path)
    proxy = client.get("/outputs/0/proxy/v/0/1").body
    assert np.isfinite(struct.unpack("<ff", proxy[:8])).all()
    assert proxy[8 + 2 * 17 + 3] == 0
    assert set(client.get("/outputs/0/proxy/v/0/2").body) == {0}
    assert np.isnan(client.frame(client.output(), "v", 1)[0, 2, 3])
    with client.events("/outputs/0/point/v/0/2/3") as events:
        assert dict(zip(*next(events)[1].values(), strict=True))[1] is None


def test_values_that_only_float64_holds_are_shown_as_nothing(
    make_config: Make, tmp_path: Path, show: Callable[..., Client]
) -> None:
    import h5py

    path = tmp_path / "run.h5"
    changes = {"output.compression": "none", "initial.kind": "noise", "model.precision": "float64"}
    gsio.simulate(make_config(changes), path)
    with h5py.File(path, "r+") as file:
        file["v"][1, 2, 3], file["v"][1, 2, 4] = 1e308, -1e308
    now = from_stack(path)
    (proxy,) = make_proxies(now, "v", 0, range(1, 2))  # a warning would be an error
    assert np.isfinite(struct.unpack("<ff", proxy[:8])).all()
    assert show(path).get("/outputs/0/proxy/v/0/1").body == proxy


def test_a_link_in_the_place_of_a_chunk_shows_no_other_file(
    make_config: Make, tmp_path: Path, show: Callable[..., Client]
) -> None:
    path, secret = tmp_path / "run.zarr", tmp_path / "secret"
    secret.write_text("a secret")
    with small_blocks(4 * PLANE, PLANE):
        gsio.simulate(make_config({**NOISE, "output.compression": "none"}), path)
    client = show(path)
    for number, target in enumerate((secret, Path("/dev/zero"), tmp_path)):
        chunk = path / "v" / f"c.{number}.0.0"
        chunk.unlink()
        chunk.symlink_to(target)
        for address in (f"chunk/v/{number}/0", f"proxy/v/0/{number}", f"window/v/0/{number}/0:12:1/0:17:1"):
            refused = client.get(f"/outputs/0/{address}")
            assert refused.status == 410
            assert b"secret" not in refused.body


def test_no_answer_names_a_folder_whose_name_has_a_space(
    make_config: Make, tmp_path: Path, show: Callable[..., Client]
) -> None:
    path = tmp_path / "a private folder" / "run.zarr"
    path.parent.mkdir()
    with small_blocks():
        gsio.simulate(make_config({**NOISE, "output.compression": "zstd", "output.shard_frames": 4}), path)
    client = show(path)
    for number, data in enumerate((b"short", bytes(10_000))):
        (path / "v" / f"c.{number}.0.0").write_bytes(data)
        refused = client.get(f"/outputs/0/proxy/v/0/{4 * number}")
        assert refused.status == 410
        assert b"private" not in refused.body


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"\xff.h5", "\\udcff.h5"),  # no text at all
        ("a\u202e5h.h5".encode(), "a\\u202e5h.h5"),  # turns the direction of the text
        (b"<script>'&quot;.h5", "<script>'&quot;.h5"),
        ("Übermaß\n50%d #?.h5".encode(), "Übermaß\n50%d #?.h5"),
    ],
)
def test_a_name_is_shown_as_text(
    name: bytes, shown: str, make_config: Make, tmp_path: Path, show: Callable[..., Client]
) -> None:
    path = tmp_path / os.fsdecode(name)
    gsio.simulate(make_config(NOISE), tmp_path / "run.h5")
    (tmp_path / "run.h5").rename(path)
    assert show(path).output()["name"] == shown
    with gsio.open_stack(path) as stack:
        page = stack._repr_html_()
    assert html.escape(shown) in page
    assert "<script>" not in page
    page.encode()


def test_a_folder_can_be_named_by_a_dot(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, show: Callable[..., Client]
) -> None:
    gsio.simulate(make_config({**NOISE, "output.compression": "zstd"}), tmp_path / "run.zarr")
    monkeypatch.chdir(tmp_path / "run.zarr")
    client = show(Path())
    assert client.output()["name"] == "run.zarr"
    assert client.get("/outputs/0/chunk/v/0/0").status == 200


def damage(dice: random.Random, path: Path) -> None:
    """Change some bytes of a file, or cut it."""
    data = bytearray(path.read_bytes())
    where = dice.randrange(max(1, min(len(data), dice.choice([100, 4000, len(data)]))))
    count = dice.choice([1, 4, 64, 1000])
    if dice.random() < 0.2:
        del data[where:]
    else:
        data[where : where + count] = dice.randbytes(len(data[where : where + count]))
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["run.h5", "run.zarr"])
def test_a_damaged_output_ends_no_server(name: str, make_config: Make, tmp_path: Path) -> None:
    intact, dice, outcomes = tmp_path / "intact" / name, random.Random(20), set()
    intact.parent.mkdir()
    with small_blocks():
        gsio.simulate(make_config({**NOISE, "output.compression": "auto"}), intact)
    for number in range(60):
        path = tmp_path / str(number) / name
        path.parent.mkdir()
        (shutil.copytree if intact.is_dir() else shutil.copyfile)(intact, path)
        damage(dice, dice.choice([file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]))
        source = Source(0, path)
        assert source.look()
        json.dumps(source.describe(), allow_nan=False)
        if (now := source.now) is None:
            outcomes.add("refused")
            continue
        for field, frame in itertools.product(now.fields, range(now.frames)):
            try:
                assert len(make_proxies(now, field, 0, range(frame, frame + 1))[0]) == 8 + 12 * 17
                outcomes.add("shown")
            except (OSError, ValueError):
                outcomes.add("a frame is refused")
    assert outcomes == {"refused", "shown", "a frame is refused"}


def test_a_pattern_that_has_nearly_died_out_has_proxies(
    make_config: Make, tmp_path: Path, show: Callable[..., Client]
) -> None:
    import h5py

    path = tmp_path / "run.h5"
    gsio.simulate(make_config({"output.compression": "none", "initial.kind": "noise"}), path)
    with h5py.File(path, "r+") as file:
        file["v"][1] *= 1e-40
    low, high = struct.unpack("<ff", show(path).get("/outputs/0/proxy/v/0/1").body[:8])
    assert 0 <= low <= high < 1e-39


def test_frames_behind_those_of_the_journal_are_not_shown(make_config: Make, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"

    def stop(progress: Progress) -> None:
        if progress.frames_committed >= 4:
            raise Interrupted("stopped by the test")

    with small_blocks(block_bytes=PLANE, chunk_bytes=PLANE), pytest.raises(Interrupted):
        gsio.simulate(make_config({"run.frames": 100_000}), path, watch=stop)
    source = Source(0, path)
    source.look()
    assert source.now is not None
    committed = source.now.frames
    journal = Path(f"{path}.journal")
    os.truncate(journal, journal.stat().st_size - 1)  # as a kill leaves it between the flush and the last record
    source.look()
    assert source.now.frames == committed - 1
