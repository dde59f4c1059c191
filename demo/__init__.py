"""Throw-away accounts, a throw-away grid and a throw-away site, for the demo, the tests and the benchmarks."""
