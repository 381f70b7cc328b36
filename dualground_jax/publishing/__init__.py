"""Trained models for others: modes `publish` and `export`."""
