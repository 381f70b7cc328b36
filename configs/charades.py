"""Charades-STA (https://arxiv.org/abs/1705.02101): moment retrieval, one window a query."""

from configs import common


def get_config(arg=None):
    """Arguments: features=iv2|sf_clip and those of `common.ARGUMENTS`."""
    args = common.parse_arg(arg, features='iv2', **common.ARGUMENTS)
    config = common.base('charades_sta', args)
    config.model.phrases = 3
    config.train.update(dict(batch_size=128, epochs=50, eval_every=1))
    config.optimizer.learning_rate = 2.5e-4
    # FlashVTG's values for this set; the paper names none.
    config.loss.weights.update(dict(sal=0.01, label=0.1))
    if args['features'] == 'iv2':
        config.model.update(dict(kernel=7, conv_layers=2, mlp_layers=3))
    return common.small(config) if args['runlocal'] else config
