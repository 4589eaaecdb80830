"""Gluon kernels for Hopper cards: latent attention, and many rows of grouped queries."""
