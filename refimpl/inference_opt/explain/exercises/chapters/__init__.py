"""The exercises, a file a chapter."""
