"""`python -m vmddpm.cli`, where the command `vmddpm` is not on the path."""

import sys

from vmddpm.cli import main

sys.exit(main())
