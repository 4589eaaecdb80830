"""The model: configuration, transformer, attention, checkpoints, tokenizer. It never hears of caches or engines."""
