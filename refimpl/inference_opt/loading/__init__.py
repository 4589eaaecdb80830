"""Models and tokenizers out of files: formats, checkpoints, vocabularies, downloads."""
