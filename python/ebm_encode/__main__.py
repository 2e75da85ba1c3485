"""`python -m ebm_encode`."""

import sys

from ebm_encode.cli import main

sys.exit(main())
