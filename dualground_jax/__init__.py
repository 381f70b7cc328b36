"""DualGround and its baselines for video moment retrieval and highlight detection, in JAX."""
