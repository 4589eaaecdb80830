"""The model: configuration, transformer, attention, experts. It knows nothing of caches or engines."""
