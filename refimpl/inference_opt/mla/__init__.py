"""Latent attention out of grown models: how good a conversion is, healing it, and the layouts side by side."""
