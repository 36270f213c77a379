"""The Markdown files: links lead somewhere, the architecture names paths that exist, and examples run as they stand."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from patience import DEADLINE

import gsio
from gsio.cli import main

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("profiling/**/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
    local = [link.partition("#")[0] for link in links if "://" not in link and not link.startswith(("#", "mailto:"))]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_the_architecture_names_paths_that_exist() -> None:
    text = (ROOT / "docs/architecture.md").read_text("utf-8")
    paths = re.findall(r"`((?:gsio|config|docs|profiling|tests)/[\w./-]+)`", text)
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []


EXAMPLES = re.findall(
    r"^```python\n(.*?)^```$", (ROOT / "docs/library.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
)


def test_the_page_on_the_library_has_examples() -> None:
    assert len(EXAMPLES) >= 3


def names(example: str) -> str:
    """Return the name of the output of an example."""
    return str(re.findall(r'FrameWriter\(\s*"([^"]+)"', example)[0])


@pytest.mark.parametrize("example", EXAMPLES, ids=names)
def test_an_example_of_the_library_runs_twice(example: str, tmp_path: Path) -> None:
    """The second run goes on with the output, or is told that the output exists."""
    run_twice(example, tmp_path)


@pytest.mark.gpu
@pytest.mark.parametrize("example", [example for example in EXAMPLES if "coords=" not in example], ids=names)
def test_an_example_of_the_library_runs_on_a_gpu(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    run_twice(example.replace("import numpy as np", "import cupy as np"), tmp_path)
    with gsio.open_stack(tmp_path / names(example)) as stack:
        assert stack.attributes["device"] != "host memory"


def run_twice(example: str, tmp_path: Path) -> None:
    for library in re.findall(r"^(?:import|from) (\w+)", example, re.MULTILINE):
        if find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    name, rounds = names(example), re.findall(r"^    for .* in range\(.*?(\d+)\):", example, re.MULTILINE)[-1]
    for number in range(2):
        done = subprocess.run(
            [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE
        )
        if number == 0 or "resume=" in example:
            assert (done.returncode, done.stderr) == (0, "")
        else:
            assert f"{name}' exists" in done.stderr.splitlines()[-1]
        assert main(["verify", str(tmp_path / name)]) == 0
        with gsio.open_stack(tmp_path / name) as stack:
            assert (stack.frames, stack.attributes["status"]) == (int(rounds), "complete")
