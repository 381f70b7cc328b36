"""Official metrics of prediction files; nothing here imports JAX."""
