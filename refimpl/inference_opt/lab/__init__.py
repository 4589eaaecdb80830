"""What proves and measures the techniques: laws by enumeration, training, benchmarks, learnt eviction."""
