"""Speculative decoding: acceptance rules, drafters, the exact law, and the zoo of wrong rules."""
