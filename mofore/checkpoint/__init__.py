"""Checkpoints: their format, reading, and writing them beside the training."""
