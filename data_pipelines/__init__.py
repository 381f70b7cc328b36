"""Data sets, annotation files and features, and the batches made of them."""
