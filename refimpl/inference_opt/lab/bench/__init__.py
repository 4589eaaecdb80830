"""Benchmarks: every number with its baseline, its limit and the command that made it."""
