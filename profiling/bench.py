"""`gsio bench`, from a checkout: python profiling/bench.py compute|storage|verdict|transfer|scaling [options]."""

import sys

from gsio.cli import main

sys.exit(main(["bench", *sys.argv[1:]]))
