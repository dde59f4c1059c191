"""`python -m procd` is `sailplane-procd`."""

from procd.main import main

main()
