"""How far a model leans on [EOS]: attention, ablation, reports."""
