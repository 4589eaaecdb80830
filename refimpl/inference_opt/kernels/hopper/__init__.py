"""Gluon kernels for Hopper cards: latent attention, and many query rows of grouped-query attention."""
