"""The model card of a pretrained folder: README.md, in the form of the Hugging Face hub."""

import json

from dualground_jax.metrics import tables

TITLES = dict(dualground='DualGround', flash_vtg='FlashVTG', cg_detr='CG-DETR', tr_detr='TR-DETR')
CARD = """{head}# {name}

{title} that finds moments in videos: given a video and a sentence, start, end and score of the
moments that the sentence speaks of, and a score of each clip. It was trained with dualground_jax
{version}; it has {parameters:,} parameters, kept as {dtype}.

## Load

```python
import dualground_jax

predictor = dualground_jax.Predictor.from_pretrained({name!r})
{example}
```

The same on the command line: `dualground --mode=predict --workdir=FOLDER {flags}`.

## Features

{features}

## Data

{data}

## Metrics

{metrics}

## Intended use, and limits

For finding what is described in videos like those it was trained on, and for research on that. It
always names moments, also where a video has none of what is asked for: scores rank the moments of
one video and sentence, they are no probabilities and do not compare between videos. It is not made
to identify people, or for decisions about them. Errors and biases of the training data and of the
encoder go into what it finds.{limits}

## Licence

{licence}
"""


def text(config: dict, told: dict, *, name: str, parameters: int, licence: str = '') -> str:
    """Writes the card.

    Args:
        config: whole config, as nested dicts.
        told: of the best checkpoint: version, dtype, best_step, best_metrics, training_data.
        name: of the model.
        parameters: how many it has.
        licence: identifier; '': none is named.
    """
    data = config['data']
    made = json.loads(data['recipe']) if data['recipe'] else None
    sees = made and made['text']
    example = (
        "video = predictor.encode_video('beach.mp4')\n"
        "windows, saliency = predictor.predict(video, 'a dog runs')" if sees else
        f'windows, saliency = predictor.predict([{", ".join(data["video_dirs"])}], text)'
        '  # rows of features')
    return CARD.format(
        head=_head(licence), name=name, title=TITLES[config['model']['name']],
        version=told['version'], parameters=parameters, dtype=told['dtype'], example=example,
        flags='--video=beach.mp4 --query="a dog runs"' if sees else
        '--video_features=VIDEO.npz --query_features=TEXT.npz',
        features=_features(data, made), data=_data(config, told), metrics=_metrics(config, told),
        limits=' It was trained on a generated world: it knows nothing of filmed videos.'
        if config['world'] else '',
        licence=licence or 'The publisher has named none.')


def _head(licence: str) -> str:
    """What the hub reads of a card."""
    lines = ['library_name: dualground_jax', f'license: {licence}' * bool(licence),
             'tags: [video-moment-retrieval, temporal-grounding, highlight-detection, jax]']
    return '\n'.join(['---', *filter(None, lines), '---', '', ''])


def _features(data: dict, made: dict | None) -> str:
    """How features are made that the model reads."""
    rows = [(folder, width, *_maker(made, folder)) for folder, width in zip(
        data['video_dirs'], data['video_dims'], strict=True)]
    rows.append((f'{data["text_dir"]} (text, {data["text_layout"]})', data['text_dim'],
                 *_maker(made, data['text_dir'])))
    table = tables.markdown(('stream', 'width', 'encoder', 'weights', 'hash'), rows)
    known = ('How they were made is not known to the model: use the release named below under Data.'
             if not made else f'Frames are chosen by the rule `{made["rule"]}`. Features by '
             'another recipe are refused.')
    read = (f'A clip has {data["clip_length"]:g} s; a video of more than {data["max_clips"]} clips '
            f'is read in stretches; of a text {data["max_tokens"]} rows are read. {known}')
    return f'{read}\n\n{table}'.rstrip()


def _maker(made: dict | None, folder: str) -> tuple[str, str, str]:
    """Encoder, source and hash of the weights behind a stream."""
    streams = [*made['streams'], made['text']] if made else []
    found = next((stream for stream in streams if stream and stream['folder'] == folder), {})
    return tuple(found.get(key) or '–' for key in ('encoder', 'source', 'weights'))


def _data(config: dict, told: dict) -> str:
    data = config['data']
    what = f'{data["dataset"]}, features `{data["features"]}`'
    if config['world']:
        what = 'The generated world of dualground_jax (`configs/synthetic.py` and its like)'
    seen = f' Trained on {told["training_data"]}.' if told['training_data'] else ''
    return f'{what}.{seen} Seed {config["seed"]}. `config.json` has all settings.'


def _metrics(config: dict, told: dict) -> str:
    brief, split = told['best_metrics']['brief'], config['evaluate']['split']
    if not brief:
        return 'None were measured.'
    chosen = ' + '.join(config['evaluate']['selection'])
    table = tables.markdown(
        ('metric', split), [(name, '–' if value is None else value)
                            for name, value in brief.items()])
    return (f'Of the best checkpoint, step {told["best_step"]}, on the split `{split}`, which also '
            f'chose it (by {chosen}): expect less elsewhere.\n\n{table}').rstrip()
