"""Training: the draft head, latent attention out of a grown model, the layouts side by side."""
