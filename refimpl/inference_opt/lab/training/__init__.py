"""Training: the draft head, the healing of converted models, and the comparison of attention layouts."""
