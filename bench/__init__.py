"""Benchmarks: the design's figures, each beside what it is measured against, as ratios of one run."""
