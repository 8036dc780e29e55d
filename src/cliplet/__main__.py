"""`python -m cliplet` is the command `cliplet`."""

import sys

from cliplet.cli import main

sys.exit(main())
