"""`python -m fedloom` is the command line."""

import sys

from fedloom.cli import main

sys.exit(main())
