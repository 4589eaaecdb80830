"""What proves and measures the techniques: distributions by enumeration, training, benchmarks, learnt eviction."""
