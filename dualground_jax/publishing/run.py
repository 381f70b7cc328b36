"""Runs an exported model on raw features, with jax, numpy and safetensors and the files beside it.

    python run.py VIDEO.npy[,VIDEO2.npy] TEXT.npy [SECONDS]

From Python:

    windows, saliency = Model(folder).predict([slowfast, clip], text_rows)
"""

import json
import pathlib
import sys

import jax
import numpy as np
from jax import export
from safetensors.numpy import load_file


def unit(rows):
    """Scales rows to length one."""
    return rows / (np.linalg.norm(rows, axis=-1, keepdims=True) + 1e-5)


class Model:
    """A model that finds moments; the first prediction of a size compiles its program."""

    def __init__(self, folder):
        self.folder, self.programs = pathlib.Path(folder), {}
        self.told = json.loads((self.folder / 'export.json').read_text())
        self.params = jax.device_put({name: value.astype(np.float32) for name, value in
                                      load_file(self.folder / 'model.safetensors').items()})

    def predict(self, streams, rows, seconds=None):
        """Finds a sentence in a video.

        Args:
            streams: float[T, d] of each stream, raw, in the order of `video_dirs` in export.json.
            rows: float[R, d] of the text encoder, raw.
            seconds: of the video; default: what the clips cover.

        Returns:
            windows float32[K, 3]: start and end in seconds and a score, best first; saliency
            float32[T].
        """
        told, n = self.told, min(map(len, streams))
        streams, rows = [np.float32(x[:n]) for x in streams], np.float32(rows)
        found = [x.shape[1] for x in streams], rows.shape[1]
        if found != (told['video_dims'], told['text_dim']) or not 0 < n <= told['max_clips']:
            raise ValueError(f'streams and text of widths {found}, {n} clips; expected '
                             f'{told["video_dims"]}, {told["text_dim"]}, 1 to {told["max_clips"]}')
        filled = rows.any(1) if told['padded'] else np.ones(len(rows), bool)
        text = rows[:np.flatnonzero([True, *filled])[-1]]
        if len(text) <= told['start'] or not all(np.isfinite(x).all() for x in (rows, *streams)):
            raise ValueError(f'{len(text)} text rows, expected more than {told["start"]}; or '
                             'numbers that are not finite')
        text = unit(text) if told['normalize_text'] else text
        if not told['has_eos']:
            mean = text[told['start']:].mean(0, keepdims=True)
            text = np.concatenate([text, unit(mean) if told['normalize_text'] else mean])
        if len(text) > told['max_tokens']:
            text = np.concatenate([text[:told['max_tokens'] - 1], text[-1:]])
        video = np.concatenate([unit(x) for x in streams], 1)
        sizes = [min(max(told['shortest'], 1 << (len(x) - 1).bit_length()), most)
                 for x, most in ((video, told['max_clips']), (text, told['max_tokens']))]
        padded = [np.pad(x, ((0, size - len(x)), (0, 0)))[None].astype(told['dtype'])
                  for x, size in zip((video, text), sizes)]
        windows, saliency = self.program(*sizes)(self.params, dict(
            video=padded[0], text=padded[1], clips=np.int32([n]), rows=np.int32([len(text)]),
            duration=np.float32([seconds or n * told['clip_length']])))
        windows = np.asarray(windows[0])
        return windows[(windows[:, 2] >= 0) & (windows[:, 0] < windows[:, 1])], saliency[0, :n]

    def program(self, *sizes):
        """The program for so many clips and text rows."""
        if sizes not in self.programs:
            path = self.folder / 'programs' / f'{sizes[0]}x{sizes[1]}.bin'
            self.programs[sizes] = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
        return self.programs[sizes]


if __name__ == '__main__':
    if not 3 <= len(sys.argv) <= 4:
        sys.exit(__doc__)
    videos, sentence, *length = sys.argv[1:]
    moments, scores = Model(pathlib.Path(__file__).parent).predict(
        list(map(np.load, videos.split(','))), np.load(sentence), *map(float, length))
    print(json.dumps(dict(windows=moments.tolist(), saliency=scores.tolist())))
