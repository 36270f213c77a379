"""`python -m gsio`."""

import sys

from gsio.cli import main

sys.exit(main())
