"""Damages of any kind: a repair leaves as many frames in the folder as there were, and says where the wreck is."""

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import pytest
from harness import FRAMES, Case, Tally, contents, newest_state
from test_damage import everything, flip, kill_in_the_middle

from gsio.reader import open_stack
from gsio.writer.journal import journal_of, read_journal

pytestmark = pytest.mark.faults

Damage = Callable[[Case, random.Random], object]


def places_of(case: Case) -> list[tuple[int, int]]:
    """Return where the chunks of an HDF5 file are: their places and sizes."""
    if (records := read_journal(case.output)) is not None:
        places = records.frames["places"].reshape(-1)
        return sorted({(int(place["offset"]), int(place["nbytes"])) for place in places})
    with h5py.File(case.output, "r") as file:
        found = [
            file[name].id.get_chunk_info(number) for name in "uv" for number in range(file[name].id.get_num_chunks())
        ]
        return sorted((chunk.byte_offset, chunk.size) for chunk in found)


def chunk_files(case: Case) -> list[Path]:
    return sorted(path for name in "uv" for path in (case.output / name).glob("c.*"))


def tear_chunk(case: Case, dice: random.Random) -> None:
    if case.output.is_dir():
        path = dice.choice(chunk_files(case))
        flip(path, dice.randrange(path.stat().st_size - 8))
    else:
        offset, nbytes = dice.choice(places_of(case))
        flip(case.output, offset + dice.randrange(nbytes - 8))


def tear_several(case: Case, dice: random.Random) -> None:
    for _ in range(dice.randint(2, 6)):
        tear_chunk(case, dice)


def tear_last(case: Case, dice: random.Random) -> None:
    if case.output.is_dir():
        path = max(chunk_files(case), key=lambda path: int(path.name.split(".")[1]))
        flip(path, path.stat().st_size // 2)
    else:
        offset, nbytes = places_of(case)[-1]
        flip(case.output, offset + nbytes // 2)


def cut_file(case: Case, dice: random.Random) -> None:
    path = dice.choice(chunk_files(case)) if case.output.is_dir() else case.output
    os.truncate(path, int(path.stat().st_size * dice.uniform(0.3, 0.98)))


def zero_superblock(case: Case, dice: random.Random) -> None:
    with case.output.open("r+b") as file:
        file.write(bytes(dice.choice([8, 96, 512])))


def flip_anywhere(case: Case, dice: random.Random) -> None:
    flip(case.output, dice.randrange(case.output.stat().st_size - 8))


def delete_chunks(case: Case, dice: random.Random) -> None:
    for path in dice.sample(chunk_files(case), dice.randint(1, 4)):
        path.unlink()


def damage_metadata(case: Case, dice: random.Random) -> None:
    found = [case.output / part / "zarr.json" for part in ("", "u", "v", "time", "step", "x")]
    for path in dice.sample(found, dice.randint(1, 3)):
        text = path.read_bytes()
        path.write_bytes(dice.choice([b"", b"{}", b"[]", text[: len(text) // 2], text.replace(b'"shape"', b'"shap"')]))


def delete_metadata(case: Case, dice: random.Random) -> None:
    (case.output / dice.choice(["", "u", "v", "integrity/crc32c"]) / "zarr.json").unlink()


def cut_journal(case: Case, dice: random.Random) -> None:
    os.truncate(journal_of(case.output), dice.randrange(journal_of(case.output).stat().st_size))


def damage_record(case: Case, dice: random.Random) -> None:
    text = journal_of(case.output).read_bytes()
    flip(journal_of(case.output), dice.randrange(text.index(b"\n"), len(text) - 8))


def damage_head(case: Case, dice: random.Random) -> None:
    flip(journal_of(case.output), dice.randrange(journal_of(case.output).read_bytes().index(b"\n") - 8))


def take_other_journal(case: Case, dice: random.Random) -> None:
    """Put the journal of another run of the same configuration beside the output, in a line that is whole."""
    text = journal_of(case.output).read_bytes()
    own = json.loads(text.partition(b"\n")[0].rpartition(b" ")[0])["attributes"]["output_id"]
    kept = case.folder.parent / "kept"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(case.folder, kept, symlinks=True)
    kill_in_the_middle(case, dice)
    other = journal_of(case.output).read_bytes()
    assert own.encode() not in other
    case.clear()
    shutil.copytree(kept, case.folder, dirs_exist_ok=True)
    journal_of(case.output).write_bytes(other)


OF_JOURNAL: dict[str, Damage] = {
    "journal cut": cut_journal,
    "record damaged": damage_record,
    "journal's head damaged": damage_head,
    "journal deleted": lambda case, dice: journal_of(case.output).unlink(),
    "journal of another run": take_other_journal,
}
OF_OUTPUT: dict[str, Damage] = {
    "chunk torn": tear_chunk,
    "chunks torn": tear_several,
    "last chunk torn": tear_last,
    "file cut": cut_file,
}
OF_HDF5: dict[str, Damage] = {"superblock zeroed": zero_superblock, "bytes flipped": flip_anywhere}
OF_ZARR: dict[str, Damage] = {
    "chunks deleted": delete_chunks,
    "metadata damaged": damage_metadata,
    "metadata deleted": delete_metadata,
}


def test_a_repair_leaves_as_many_frames_as_there_were(
    case: Case, tally: Tally, dice: random.Random, rounds: int
) -> None:
    for number in range(rounds):
        killed = dice.random() < 0.75
        of_output = OF_OUTPUT | (OF_ZARR if case.output.suffix == ".zarr" else OF_HDF5)
        # In their order: where chunks are is read from what is still whole.
        names = sorted(dice.sample([*of_output], dice.randint(0 if killed else 1, 2)), key=[*of_output].index)
        if killed and (not names or dice.random() < 0.6):
            names.append(dice.choice([*OF_JOURNAL]))

        def play(
            killed: bool = killed, names: list[str] = names, of_output: dict[str, Damage] = of_output
        ) -> Iterator[str]:
            if killed:
                kill_in_the_middle(case, dice)
                yield "killed"
            else:
                assert case.run().code == 0
                yield "completed"
            for name in names:
                (of_output | OF_JOURNAL)[name](case, dice)
            there, before = case.decodable(), everything(case.output)
            ended = case.launcher.run("repair", case.output)
            assert ended.code in (0, 65), f"{ended.code}: {ended.text}"
            assert "Traceback" not in ended.text
            left = case.decodable()
            assert there <= left, f"frames {sorted(there - left)} can no more be decoded: {ended.text}"
            aside = re.search(r"the output as it was is '(.*)'\s*\Z", ended.text)
            if aside:
                assert everything(Path(aside[1])) == before
                yield "repaired"
            else:
                assert everything(case.output) == before
                assert ended.code == 65 or "nothing to repair" in ended.text, ended.text
                yield "intact"
            check_what_goes_on(case, repaired=ended.code == 0)
            yield "identical"

        tally.play(case, "damaged and repaired", f"round {number}, {', '.join(names)}", play)


def check_what_goes_on(case: Case, *, repaired: bool) -> None:
    """Resume: all is as in the undisturbed run, but for damaged frames before the checkpoint, which verify names."""
    with_output = case.decodable(case.output)
    ended = case.resume()
    assert ended.code in ((0,) if repaired else (0, 65)), ended.text
    assert "Traceback" not in ended.text
    if ended.code:
        return
    assert with_output <= case.decodable(case.output)
    missing = set(range(FRAMES)) - case.decodable(case.output)
    said = case.launcher.run("verify", case.output)
    named: set[int] = set()
    for first, last in re.findall(r"^frames? (\d+)(?: to (\d+))?: ", said.text, re.MULTILINE):
        named |= set(range(int(first), int(last or first) + 1))
    assert named == missing, f"{said.text}; frames {sorted(missing)} cannot be decoded"
    assert said.code == (65 if missing else 0), said.text
    if not missing:
        found = contents(case.output)
        assert [name for name in case.whole if found[name] != case.whole[name]] == []
    else:
        with open_stack(case.output) as stack:
            assert stack.frames == FRAMES
            assert stack.attributes["status"] == "complete"
        assert max(missing) < newest_state(case.output).frames
