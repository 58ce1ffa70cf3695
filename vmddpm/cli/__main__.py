"""`python -m vmddpm.cli`, for when the command `vmddpm` is not on the PATH."""

import sys

from vmddpm.cli import main

sys.exit(main())
