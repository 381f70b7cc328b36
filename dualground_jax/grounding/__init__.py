"""Moments of sentences in single videos, however long: from Python, and mode `predict`."""
