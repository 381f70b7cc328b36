"""How the attention to [EOS] and words scales with the room for it: dummies L_d and phrases N.

    python -m dualground_jax.main --mode=sweep --config=configs/sweeps/attention_scaling.py \\
        --workdir=runs/attention_scaling
    python -m dualground_jax.main --mode=analyse --workdir=runs/attention_scaling

Other sizes scale alike (--sweep takes the place of those below): model.width, model.heads,
model.t2v_layers, model.enc_layers, model.context_layers, data.max_tokens.
"""

from configs import synthetic


def get_config(arg=None):
    """Arguments: those of `common.ARGUMENTS`."""
    config = synthetic.get_config(arg)
    config.sweep = ('model.dummies=1,4,16', 'model.phrases=2,4', 'seed=1,2')
    config.train.max_steps = 250
    config.evaluate.pictures = 0
    return config
