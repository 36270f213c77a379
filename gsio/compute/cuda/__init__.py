"""The solver and the encoder for NVIDIA GPUs."""
