"""Eviction policies that learn, for the radix tree."""
