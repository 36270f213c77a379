"""Prints what overlapped in a run, of an export of Nsight Systems or a timeline of gsio's own.

    nsys export --type sqlite report.nsys-rep && python profiling/overlap.py report.sqlite
    gsio run --output run.h5 --timeline run.json && python profiling/overlap.py run.json

Of the export are read start and end in CUPTI_ACTIVITY_KIND_KERNEL, CUPTI_ACTIVITY_KIND_GRAPH_TRACE (CUDA graphs, unless
recorded with --cuda-graph-trace=node) and CUPTI_ACTIVITY_KIND_MEMCPY (copyKind 2, to the host); start, end, eventType,
text, textId, domainId and globalTid in NVTX_EVENTS; id and value in StringIds. gsio/profile/nsys.py says more of them.
"""

import argparse
import sys
from pathlib import Path

from gsio.errors import GsioError
from gsio.profile import nsys
from gsio.profile.overlap import overlap
from gsio.trace import timeline


def main() -> int:
    """Read, and print the report or one line that says what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, metavar="REPORT.sqlite or TIMELINE.json")
    path = parser.parse_args().path
    try:
        print(overlap(timeline.read(path) if path.suffix == ".json" else nsys.read(path)))
    except GsioError as error:
        print(f"overlap: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
