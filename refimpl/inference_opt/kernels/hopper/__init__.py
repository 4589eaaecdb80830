"""Gluon kernels for Hopper cards: latent attention, many query rows of grouped-query attention, and few rows."""
