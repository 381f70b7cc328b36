"""The study of docs/study.md: what do models read, [EOS] or the words, where an encoder has learned
[EOS], and where it is planted? A run takes a minute or two on a core.

    python -m dualground_jax.main --mode=study --config=configs/sweeps/study.py --workdir=runs/study
"""

import os

from ml_collections import ConfigDict

from configs import common, pixels, synthetic

PLANTED, SHIPPED = 'planted', 'shipped'  # features without an encoder, and of the one we ship
# Encoders to train: name -> what makes it another one than `reference`, of configs/tiny_clip.py.
ENCODERS = dict(
    reference={},
    reseeded={'seed': 1},
    narrow={'model.width': 48},
    shallow={'model.layers': 1},
    brief={'train.max_steps': 150},
    single={'train.named_concepts': 1},
    wordwise={'train.word_weight': 1.0},
)
ENCODER_STEPS = 750
FIVE, EIGHT = 'seed=1,2,3,4,5', 'seed=1,2,3,4,5,6,7,8'
BOTH, LEARNED = f':world={PLANTED},{SHIPPED}', f':world={SHIPPED}'
PATHS = ':model=dualground,flash_vtg'
DETRS = ':model=tr_detr,cg_detr'
SWEEPS = (
    # Which model, with which of its losses?
    (BOTH, PATHS, EIGHT),
    (BOTH, 'loss.weights.eos=0.0', EIGHT),
    (BOTH, 'model.slot_normalize=inputs', EIGHT),
    (BOTH, 'loss.weights.eos=0.0', 'model.slot_normalize=inputs', EIGHT),
    # What does [EOS] give, what do words?
    (BOTH, ':paths=sentence,phrase', FIVE),
    (BOTH, PATHS, ':tokens=eos,words', FIVE),
    (BOTH, DETRS, FIVE),
    (BOTH, DETRS, ':tokens=eos,words', FIVE),
    # What if distractors exchange attributes?
    (LEARNED, 'world.attribute_swaps=1.0', PATHS, FIVE),
    (LEARNED, 'world.attribute_swaps=1.0', ':paths=sentence,phrase', FIVE),
    # How does it scale? One value of each size is that of the runs above.
    (LEARNED, PATHS, 'model.width=16,64', FIVE),
    (LEARNED, PATHS, 'world.train_queries=1000,2000', FIVE),
    (LEARNED, PATHS, 'world.max_concepts=3,5', FIVE),
    (LEARNED, 'model.phrases=1,6', FIVE),
    (LEARNED, 'model.dummies=1,12', FIVE),
    (LEARNED, 'model.t2v_layers=1,4', FIVE),
    # What does the encoder change?
    (f':world={",".join(ENCODERS)}', PATHS, FIVE),
)


def get_config(arg: str | None = None) -> ConfigDict:
    """Arguments: the world, of `ENCODERS`, planted or shipped; where the encoders are; those of
    `common.ARGUMENTS`.

    Raises:
        DataError: the encoder can't be read.
    """
    own = dict(world=SHIPPED, encoders='runs/study/encoders')
    args = common.parse_arg(arg, **own, **common.ARGUMENTS)
    world = args['world']
    asked = [f'{name}={value}' for name, value in args.items() if name not in own and value]
    if not args['root']:
        asked.append(f'root=data/study/{world}{"_small" * args["runlocal"]}')
    if world == PLANTED:
        config = synthetic.get_config(','.join(asked))
    else:
        if world != SHIPPED:
            asked.append('encoder=' + os.path.join(args['encoders'], world, 'encoder'))
        config = pixels.get_config(','.join(asked))
    config.sweep = SWEEPS
    config.world.update(min_clips=14, max_clips=20)
    config.data.max_clips = config.world.max_clips
    config.evaluate.pictures = 0
    if not args['runlocal']:
        config.world.test_queries = 600
        common.resize(config, width=32, ffn=64)
        config.train.update(max_steps=1000, eval_every=2, buckets=1)
    return config
