"""Throw-away accounts, grid and site, for the demo, the tests and the benchmarks."""
