"""A model that has not trained, its encoder and videos: what a service needs."""

import pathlib

from tests.helpers import clip_folder, fresh_runs

MOST = 16  # clips of a stretch


def write(folder: pathlib.Path, **values) -> tuple[str, str]:
    """Makes a run and an encoder for it; returns the flags that name them."""
    clip_folder.write(folder / 'clip')
    fresh_runs.save(folder / 'run', **{
        'model.paths': 'both', 'model.phrase_layers': 1, 'model.context_layers': 1,
        'model.t2v_layers': 1, 'model.enc_layers': 1, 'model.dummy_layers': 1,
        'data.video_dirs': ('clip',), 'data.video_dims': (12,), 'data.text_dim': 16,
        'data.max_clips': MOST, 'data.max_tokens': 16, 'evaluate.batch_size': 4} | values)
    return f'--workdir={folder}/run', f'--encoder=clip={folder}/clip'
