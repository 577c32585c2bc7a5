"""`python -m flatlm`: the command line without the command."""

import sys

from flatlm.runtime.cli import main

sys.exit(main())
