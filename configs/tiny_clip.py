"""A small CLIP of the generated world, for --mode=train-encoder: minutes on two cores."""

from ml_collections import ConfigDict

from configs import common, defaults


def get_config(arg: str | None = None) -> ConfigDict:
    """Arguments: runlocal."""
    args = common.parse_arg(arg, runlocal=False)
    config = ConfigDict(dict(
        seed=0,
        model=dict(
            name='clip',
            width=96,  # of both towers
            heads=4,
            layers=3,  # of each tower
            patch=8,  # pixels
            projected=64,  # width of features
            context=32,  # rows of a sentence
            dtype='float32',
        ),
        world=dict(  # as of world.World
            min_concepts=2,  # that a sentence names
            max_concepts=10,
            extras=0.3,  # concepts beside these in a picture, as a share of them
            faintest=0.7,
        ),
        optimizer=dict(defaults.OPTIMIZER, learning_rate=1e-3, weight_decay=1e-2, clip_norm=1.0,
                       schedule='cosine', warmup_steps=100),
        train=dict(
            batch_size=128,
            max_steps=1500,
            log_every=10,  # steps
            eval_every=250,  # steps
            named_concepts=0,  # most concepts that a caption names; 0: it is the whole sentence
            word_weight=0.0,  # of FILIP's loss of words and patches beside CLIP's
        ),
        evaluate=dict(pairs=256),
        mesh={axis: defaults.MESH[axis] for axis in ('data', 'fsdp', 'model')},
    ))
    if args['runlocal']:
        config.model.update(width=16, heads=2, layers=1, patch=32, projected=8)
        config.optimizer.warmup_steps = 1
        config.train.update(batch_size=8, max_steps=4, log_every=1, eval_every=2)
        config.evaluate.pairs = 8
    return config
