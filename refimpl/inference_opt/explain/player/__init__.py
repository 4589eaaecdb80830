"""The player: a trace to be stepped through, in a page or a notebook."""
