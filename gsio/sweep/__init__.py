"""Sweeps: many runs that differ in some keys, computed in batches, and kept as one result."""
