"""Frames: what a frame is, how files and memory are cut into pieces of them, and the blocks they travel in."""
