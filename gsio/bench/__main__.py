"""Measure one row of a table: the argument is JSON, and so is the printed result."""

import json
import sys
from importlib import import_module
from pathlib import Path

from gsio import log
from gsio.processes import end_with_parent

end_with_parent()
log.configure("text", quiet=True)
table, folder, *arguments = json.loads(sys.argv[1])
print(json.dumps(import_module(f"gsio.bench.{table}").measure(Path(folder), *arguments)))  # noqa: T201
