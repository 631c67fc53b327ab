"""Fusion: checkpoints in, candidate checkpoints out."""
