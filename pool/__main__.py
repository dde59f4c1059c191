"""`python -m pool` is `sailplane-pool`."""

import sys

from pool.main import main

sys.exit(main())
