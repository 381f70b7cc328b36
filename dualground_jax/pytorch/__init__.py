"""Checkpoints of the public PyTorch code, read and written."""
