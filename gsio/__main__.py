"""`python -m gsio`."""

import signal
import sys

from gsio.cli import main
from gsio.processes import end_with_parent

end_with_parent(signal.SIGTERM)  # with `gsio profile`
sys.exit(main())
