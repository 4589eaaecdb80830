"""Benchmarks: every number with its baseline, its limit and the command that produced it."""
