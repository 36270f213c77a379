"""`python -m gsio`."""

import signal

from gsio.cli import program
from gsio.processes import end_with_parent

end_with_parent(signal.SIGTERM)  # with `gsio profile`
program()
