"""Ahead-of-time compilation for TPU slices, and what the program costs there."""
