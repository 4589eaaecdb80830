"""Models and tokenizers from files: formats, checkpoints, vocabularies, downloads."""
