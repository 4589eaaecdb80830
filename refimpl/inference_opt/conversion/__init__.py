"""Latent attention for pretrained models: the conversion of grouped queries, and the packaged factors."""
