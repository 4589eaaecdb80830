"""The model: configuration, transformer, attention, experts. It never hears of caches or engines."""
