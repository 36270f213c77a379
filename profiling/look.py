"""How quick is the page of `gsio view`? Measured in Chromium, which this program drives, and printed as a table.

    python profiling/look.py run.h5 --pairs 4 --frames 300

`run.h5` is an output that nobody writes, for example of the default job. New runs of the default job, with `--frames`
frames each, are made beside it and deleted. They run alone and with a viewer in the order A B B A. The browser needs
the packages `.[test]` and the program `chromium`.
"""

import argparse
import itertools
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import psutil
from playwright.sync_api import Browser, Page, sync_playwright

GSIO = [sys.executable, "-m", "gsio"]
EXACT = 30  # frames in random places
STARTS = 5
SCRUB = """async (frames) => {
  const slider = document.querySelector("#slider"), work = [], times = [];
  const next = () => new Promise(requestAnimationFrame);
  const painted = () => new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = resolve;
    port2.postMessage(0);
  });
  let seen = 0;
  for (let frame = 0; frame < frames; frame++) {
    let began;
    requestAnimationFrame((now) => { began = performance.now(); times.push(now); });
    slider.value = frame;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    await next();
    await painted();
    work.push(performance.now() - began);
    seen += document.documentElement.dataset.frame === String(frame);
  }
  return { work, gaps: times.slice(1).map((time, i) => time - times[i]), seen };
}"""
RECORD = """() => {
  window.appeared = [];
  let last = "";
  const look = () => {
    const { frame } = document.documentElement.dataset;
    if (frame !== last) window.appeared.push([Date.now() / 1000, Number(frame)]);
    last = frame;
    requestAnimationFrame(look);
  };
  look();
}"""


@contextmanager
def viewed(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Give the process of `gsio view` and the address that it prints; end it at the end."""
    command = [*GSIO, "view", "--no-browser", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as view:
        assert view.stdout is not None
        try:
            yield view, view.stdout.readline().strip()
        finally:
            view.terminate()


def show(page: Page, url: str, fragment: str = "") -> None:
    """Open the page, and wait until it has drawn the first state."""
    page.goto(url)
    page.wait_for_selector("html[data-ready=true]", state="attached")
    page.evaluate("fragment => { location.hash = fragment; }", fragment)


def spread(values: list[float], unit: str = "ms", digits: int = 1) -> str:
    """Return median, 95 % and largest of some values."""
    ordered = sorted(values)
    high = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return f"{statistics.median(ordered):.{digits}f} / {high:.{digits}f} / {ordered[-1]:.{digits}f} {unit}"


def first_frame(browser: Browser, output: Path) -> list[float]:
    """Return the seconds from the start of `gsio view` to the first picture in a browser that is open already."""
    seconds = []
    for _ in range(STARTS):
        page, began = browser.new_page(), time.perf_counter()
        with viewed(str(output)) as (_, url):
            page.goto(url)
            page.wait_for_selector("html[data-kind=exact], html[data-kind=proxy]", state="attached")
            seconds.append(time.perf_counter() - began)
            page.close()
    return seconds


def scrub(browser: Browser, output: Path) -> Iterator[tuple[str, str]]:
    """Yield what it takes to have all previews, to drag the slider through them, and to see exact frames."""
    with viewed(str(output)) as (_, url):
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        network, nbytes = page.context.new_cdp_session(page), [0.0]
        network.send("Network.enable")
        network.on("Network.loadingFinished", lambda event: nbytes.append(event["encodedDataLength"]))
        began = time.perf_counter()
        show(page, url)
        frames = page.evaluate("gsio.state().outputs[0].frames")
        page.wait_for_function(f"() => gsio.state().outputs[0].previews === Math.ceil({frames} / 16)", timeout=600_000)
        yield f"previews of {frames} frames are in memory after", f"{time.perf_counter() - began:.1f} s"
        found = page.evaluate(SCRUB, frames)
        page.wait_for_selector(f"html[data-frame='{frames - 1}'][data-kind=exact]", state="attached")
        yield f"a preview from memory to the screen, {frames} frames", spread(found["work"])
        yield "time between two frames on the screen meanwhile", spread(found["gaps"])
        yield "frames that were on the screen", f"{found['seen']} of {frames}"
        yield "over the wire for all of this", f"{sum(nbytes) / 1e6:.1f} MB"
        dice = random.Random(1)
        for frame in dice.sample(range(frames - 1), EXACT):
            page.locator("#frame").fill(str(frame))
            page.locator("#frame").press("Enter")
            page.wait_for_selector(f"html[data-frame='{frame}'][data-kind=exact]", state="attached")
        marks = page.evaluate("gsio.marks()[0].exact")[-EXACT:]
        yield f"an exact frame, from the request to the picture, {EXACT} random frames", spread(marks)
        page.close()


def run(output: Path, frames: int) -> tuple[float, list[tuple[float, int]]]:
    """Run the default job; return the seconds of the process, and when how many frames were committed."""
    command = [*GSIO, "run", "--debug", "--log-format", "json", "-n", str(frames), "-o", str(output)]
    began = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    events = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    commits = [event for event in events if event["event"] == "block committed"]
    return seconds, [(datetime.fromisoformat(event["timestamp"]).timestamp(), event["frame"]) for event in commits]


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """Return the seconds that these processes have used of any core."""
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def watched(browser: Browser, output: Path, frames: int) -> tuple[float, list[float], float, float]:
    """Run the default job with a page that follows it.

    Returns the seconds of the run, those from each commit to the screen, and the processor's of server and browser.
    """
    with viewed("--wait", str(output)) as (view, url):
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        show(page, url, "follow=1")
        page.evaluate(RECORD)
        server, us = psutil.Process(view.pid), psutil.Process()
        others = [p for p in us.children(recursive=True) if p.pid != view.pid and "chrom" in p.name()]
        before = cpu_seconds([server]), cpu_seconds(others)
        seconds, commits = run(output, frames)
        after = cpu_seconds([server]), cpu_seconds(others)
        page.wait_for_selector(f"html[data-frame='{frames - 1}']", state="attached")
        appeared = page.evaluate("window.appeared")
        page.close()
    late = [min(when for when, frame in appeared if frame >= number - 1) - at for at, number in commits]
    return seconds, late, after[0] - before[0], after[1] - before[1]


def viewer(browser: Browser, folder: Path, pairs: int, frames: int) -> Iterator[tuple[str, str]]:
    """Yield what a viewer costs a run of the default job, and how soon a frame is on the screen."""
    alone: list[float] = []
    with_viewer: list[tuple[float, list[float], float, float]] = []
    run(folder / "run.h5", 8)  # it compiles
    for is_watched in itertools.islice(itertools.cycle([False, True, True, False]), 2 * pairs):
        for path in folder.iterdir():
            path.unlink()
        if is_watched:
            with_viewer.append(watched(browser, folder / "run.h5", frames))
        else:
            alone.append(run(folder / "run.h5", frames)[0])
    seconds = [row[0] for row in with_viewer]
    yield "from a commit to the screen", spread([late for row in with_viewer for late in row[1]], "s", 2)
    yield f"a run of {frames} frames alone, {len(alone)} runs", spread(alone, "s", 2)
    yield f"the same with a viewer, {len(seconds)} runs", spread(seconds, "s", 2)
    slower = [new / old - 1 for old, new in zip(alone, seconds, strict=True)]
    yield (
        "slower by, pair by pair",
        f"median {statistics.median(slower):+.1%}: " + ", ".join(f"{s:+.1%}" for s in slower),
    )
    cores = psutil.cpu_count() or 1
    for name, place in (("server", 2), ("browser", 3)):
        share = [row[place] / row[0] / cores for row in with_viewer]
        yield f"share of all {cores} cores that the {name} took", f"median {statistics.median(share):.1%}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--pairs", type=int, default=4, help="runs alone, and as many with a viewer; 0 leaves them out")
    parser.add_argument("--frames", type=int, default=300, help="of each of these runs")
    arguments = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("expected the program chromium on PATH")
    options = ["--no-sandbox", "--disable-dev-shm-usage"]
    with sync_playwright() as playwright, tempfile.TemporaryDirectory(dir=arguments.output.parent) as folder:
        browser = playwright.chromium.launch(executable_path=chromium, args=options)
        print("Three times are median / 95 % / largest.\n\n| measured | result |\n|---|---|", flush=True)
        starts = first_frame(browser, arguments.output)
        print(f"| first picture after Enter, {STARTS} starts | {spread(starts, 's', 2)} |", flush=True)
        rows: list[Iterator[tuple[str, str]]] = [scrub(browser, arguments.output)]
        if arguments.pairs:
            rows.append(viewer(browser, Path(folder), arguments.pairs, arguments.frames))
        for name, result in itertools.chain(*rows):
            print(f"| {name} | {result} |", flush=True)
        browser.close()


if __name__ == "__main__":
    main()
