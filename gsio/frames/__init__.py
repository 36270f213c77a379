"""Frames: their format, the chunks and blocks that files and memory are cut into, and the pool of blocks."""
