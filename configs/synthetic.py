"""The planted world: the default job, generated on first use, trained on a laptop in minutes."""

from ml_collections import ConfigDict

from configs import common
from data_pipelines import sentences, world


def get_config(arg: str | None = None) -> ConfigDict:
    """Arguments: those of `common.ARGUMENTS`."""
    args = common.parse_arg(arg, **common.ARGUMENTS)
    planted = world.World()
    return of_world(
        args, 'planted', video_dims=(planted.video_dim,), text_dim=planted.text_dim,
        max_tokens=sentences.MAX_WORDS + 2)  # beside words start-of-text and [EOS]


def of_world(args: dict, features: str, encoder: str = '', **data) -> ConfigDict:
    """The config for a generated world.

    Args:
        args: of `common.ARGUMENTS`.
        features: 'planted' or 'pixels'.
        encoder: of the latter, see `world.World`.
        **data: what the features decide of the section `data`.
    """
    config = common.base('synthetic', args | dict(features=features))
    sizes = dict(train_queries=32, val_queries=16, test_queries=16) if args['runlocal'] else {}
    generated = world.World(encoder=encoder, **sizes)
    config.world = world.parameters(generated)
    name = dict(planted='synthetic').get(features, features) + '_small' * args['runlocal']
    config.data.update(root=args['root'] or f'data/{name}', max_clips=generated.max_clips, **data)
    common.resize(
        config, width=64, heads=4, ffn=128, t2v_layers=2, enc_layers=1, dec_layers=2, dummies=3,
        context_layers=1, mlp_layers=2, phrases=3, input_dropout=0.1)
    config.optimizer.update(learning_rate=1.5e-3, schedule='cosine', warmup_steps=50)
    config.train.update(batch_size=32, epochs=8, eval_every=1)
    config.evaluate.batch_size = 100
    return common.small(config) if args['runlocal'] else config
