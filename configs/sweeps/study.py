"""What do models read, [EOS] or the words, where an encoder has learned [EOS], and where it is
planted? A run of 1000 steps takes 30 to 90 seconds on a core.

    python -m dualground_jax.main --mode=study --config=configs/sweeps/study.py --workdir=runs/study
"""

import itertools
import os

from ml_collections import ConfigDict

from configs import common, pixels, synthetic, tiny_clip
from data_pipelines.errors import ConfigError

PLANTED, SHIPPED = 'planted', 'shipped'  # features without an encoder, and of the one we ship
STEPS = dict(train=dict(max_steps=750))
# Encoders to train: name -> what is other than in configs/tiny_clip.py.
ENCODERS = dict(
    reference=STEPS,
    reseeded=dict(STEPS, seed=1),
    narrow=dict(STEPS, model=dict(width=48)),
    shallow=dict(STEPS, model=dict(layers=1)),
    brief=dict(train=dict(max_steps=150)),
    single=dict(train=dict(STEPS['train'], named_concepts=1)),
    wordwise=dict(train=dict(STEPS['train'], word_weight=1.0)),
)
FIVE, EIGHT = 'seed=1,2,3,4,5', 'seed=1,2,3,4,5,6,7,8'
FURTHER = 'seed=9,10,11,12,13,14,15,16'
BOTH, LEARNED = f':world={PLANTED},{SHIPPED}', f':world={SHIPPED}'
LONG = 'train.max_steps=3000'
PATHS, DETRS = ':model=dualground,flash_vtg', ':model=tr_detr,cg_detr'
QUESTIONS = {
    'Models': ((BOTH, PATHS, EIGHT), (BOTH, DETRS, FIVE)),
    'Variants': (
        (BOTH, 'loss.weights.eos=0.0', EIGHT),
        (BOTH, 'model.slot_normalize=inputs', EIGHT),
        # Eight seeds left open which of the two is ahead.
        (f':world={PLANTED}', ':model=flash_vtg', FURTHER),
        (f':world={PLANTED}', 'loss.weights.eos=0.0', FURTHER)),
    'Trained on [EOS] or words alone': (
        (BOTH, PATHS, ':tokens=eos,words', FIVE),
        (BOTH, DETRS, ':tokens=eos,words', FIVE)),
    'Paths, and distractors that exchange attributes': (
        (BOTH, ':paths=sentence,phrase', FIVE),
        (LEARNED, 'world.attribute_swaps=1.0', PATHS, FIVE),
        (LEARNED, 'world.attribute_swaps=1.0', ':paths=sentence,phrase', FIVE)),
    'Trained three times as long': (
        (BOTH, PATHS, LONG, EIGHT), (BOTH, 'loss.weights.eos=0.0', LONG, EIGHT),
        (BOTH, DETRS, LONG, FIVE)),
    'Encoders': ((f':world={",".join(ENCODERS)}', PATHS, FIVE),),
    # The middle of each size is a run above.
    'Sizes': (
        (LEARNED, PATHS, 'model.width=16,64', FIVE),
        (LEARNED, 'model.t2v_layers=1,4', FIVE),
        (LEARNED, 'model.phrases=1,6', FIVE),
        (LEARNED, 'model.dummies=1,12', FIVE),
        (LEARNED, 'world.train_queries=1000,2000', FIVE),
        (LEARNED, 'world.max_concepts=3,5', FIVE)),
}
SMALL = {'Encoders': ((':world=reference', 'seed=1'),)}


def get_config(arg: str | None = None) -> ConfigDict:
    """Arguments: the world, of `ENCODERS`, planted or shipped; where the encoders are; those of
    `common.ARGUMENTS`.

    Raises:
        ConfigError: no such world.
    """
    args = common.parse_arg(
        arg, world=SHIPPED, encoders='', **common.ARGUMENTS)
    world, small = args['world'], '_small' * args['runlocal']
    args['root'] = args['root'] or f'data/study/{world}{small}'
    args['encoders'] = args['encoders'] or f'runs/study/encoders{small}'
    trained = dict(reference={}) if args['runlocal'] else ENCODERS
    if world in trained:  # it may be still to be trained
        sizes = tiny_clip.get_config('runlocal' * args['runlocal']).model
        sizes.update(trained[world].get('model', {}))
        config = synthetic.of_world(
            args, 'pixels', os.path.join(args['encoders'], world, 'encoder'),
            video_dims=(sizes.projected,), text_dim=sizes.width, max_tokens=sizes.context)
    else:
        chosen = {PLANTED: synthetic, SHIPPED: pixels}.get(world)
        if not chosen:
            raise ConfigError(f'config argument world={world!r}: expected {PLANTED}, {SHIPPED}, '
                              f'{", ".join(trained)}')
        config = chosen.get_config(','.join(
            f'{name}={value}' for name, value in args.items() if name in common.ARGUMENTS
            and value))
    questions = SMALL if args['runlocal'] else QUESTIONS
    config.sweep = tuple(itertools.chain(*questions.values()))
    config.study = dict(
        questions=questions, folder=args['encoders'],
        encoder='configs/tiny_clip.py' + ':runlocal' * args['runlocal'],
        encoders=trained)
    config.world.update(min_clips=14, max_clips=20)
    config.data.max_clips = config.world.max_clips
    config.evaluate.pictures = 0
    if not args['runlocal']:
        config.world.test_queries = 600
        common.resize(config, width=32, ffn=64)
        config.train.update(max_steps=1000, eval_every=2, buckets=1, steps_per_call=25)
    return config
