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


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: re.findall(r'FrameWriter\(\s*"([^"]+)"', example)[0])
def test_an_example_of_the_library_runs_twice(example: str, tmp_path: Path) -> None:
    """The second run goes on with the output, or is told that the output exists."""
    for library in re.findall(r"^(?:import|from) (\w+)", example, re.MULTILINE):
        if find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    (name,), (rounds,) = re.findall(r'FrameWriter\(\s*"([^"]+)"', example), re.findall(r"range\(.*?(\d+)\):", example)
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
