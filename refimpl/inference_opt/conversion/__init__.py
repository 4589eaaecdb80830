"""Latent attention out of grown models: grouped queries converted, and the factors that are packaged."""
