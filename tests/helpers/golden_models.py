"""Reads the whole-model goldens: a folder's weights, batches and losses as our models take them."""

import functools
import json
import re

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.tokens import WORD
from dualground_jax import models, state_dict
from dualground_jax.pytorch import mapping, names
from tests.helpers.paths import goldens_dir

# Golden folder -> name of the model.
FOLDERS = dict(
    flashvtg='flash_vtg', flashvtg_iv2='flash_vtg', cgdetr='cg_detr', trdetr='tr_detr'
)


def folders(*models):
    """The golden folders that are there; with names of models, only theirs."""
    return [
        name for name, model in FOLDERS.items()
        if (not models or model in models) and (goldens_dir() / name / 'weights.npz').is_file()
    ]


def golden_batch(path, ids, options):
    """A stored batch as ours. `ids`: the key of its video ids; for dset `hl` a trailing
    _start_end does not belong to the name."""
    x = dict(np.load(path))
    names = [str(v).rsplit('_', 2)[0] if options['dset_name'] == 'hl' else str(v) for v in x[ids]]
    counts = np.arange(x['relevant_windows_sec'].shape[1]) < x['num_windows'][:, None]
    spans = np.arange(x['span_labels_cxw'].shape[1]) < x['num_windows'][:, None]
    return dict(
        video=x['src_vid'],
        video_mask=x['src_vid_mask'] > 0,
        source_id=np.unique(names, return_inverse=True)[1].astype(np.int32),
        text=x['src_txt'],
        text_role=np.where(x['src_txt_mask'] > 0, WORD, 0).astype(np.int32),
        duration=x['duration'].astype(np.float32),
        clip_length=np.full(len(x['duration']), options['clip_length'], np.float32),
        windows=np.where(counts[..., None], x['relevant_windows_sec'], 0).astype(np.float32),
        windows_mask=counts,
        spans=x['span_labels_cxw'].astype(np.float32),
        spans_mask=spans,
        saliency=x['saliency_all_labels'].astype(np.float32),
        relevant=x['src_pos_mask'] > 0,
        pos_clips=x['saliency_pos_labels'].astype(np.int32),
        neg_clips=x['saliency_neg_labels'].astype(np.int32),
        pairs_mask=np.ones(len(names), bool),
        graded=np.ones(len(names), bool),
    )


def trimmed(batch, b):
    """Sample b of a batch alone, without padding."""
    one = {k: v[b : b + 1] for k, v in batch.items()}
    clips = one['video_mask'].sum()
    for name in ('video', 'video_mask', 'saliency', 'relevant'):
        one[name] = one[name][:, :clips]
    tokens = (one['text_role'] > 0).sum()
    return one | {name: one[name][:, :tokens] for name in ('text', 'text_role')}


def windows_of(stored, duration):
    """The windows [N, 3], in any order, that a sample's stored entries stand for.

    FlashVTG's are stored; the others' are what the references make of the last layer's predictions.
    """
    if 'boundary' in stored:
        return stored['boundary']
    logits, (centre, width) = stored['pred_logits'][0], stored['pred_spans'][0].T
    score = 1 / (1 + np.exp(logits[:, 1] - logits[:, 0]))
    return np.stack([(centre - width / 2) * duration, (centre + width / 2) * duration, score], 1)


class GoldenModel:
    """A golden folder with its model, parameters and the config of its loss."""

    def __init__(self, folder):
        self.folder, self.name = goldens_dir() / folder, FOLDERS[folder]
        self.module = models.MODELS[self.name]
        self.options = json.loads((self.folder / 'config.json').read_text())['config']
        self.state = dict(np.load(self.folder / 'weights.npz'))
        self.code = names.CODES[self.name]
        config = ConfigDict(dict(model=models.defaults(self.name), loss=self.module.LOSS)).lock()
        config.update_from_flattened_dict(
            mapping.read_options(self.code, self.options, self.state)
        )
        self.model, self.loss = self.module.Model(**config.model), config.loss
        self.train_batch = self.batch('full/inputs.npz')
        shapes = jax.eval_shape(
            lambda: nn.unbox(self.model.init(jax.random.key(0), self.train_batch, train=True))
        )
        self.params = {'params': self.from_torch(self.state, shapes['params'])}

    def from_torch(self, state, shapes=None):
        """Values by torch names as our tree; those that we have no parameter for are dropped."""
        shapes = self.params['params'] if shapes is None else shapes
        return state_dict.from_torch(state, shapes, self.code.names, unused=self.code.unused)

    def batch(self, name, ids='vid_main'):
        """A stored batch as ours."""
        return golden_batch(self.folder / name, ids, self.options)

    def arrays(self, name):
        """An .npz file of the folder."""
        return dict(np.load(self.folder / name))

    def evaluated(self, b):
        """What is stored of sample b as it is evaluated: alone, without padding."""
        found = {}
        for name, value in self.arrays('outputs_eval.npz').items():
            if match := re.fullmatch(rf'(?:single_)?trim/s{b}/(.*)', name):
                found[match[1]] = value
        return found

    def json(self, name):
        """A .json file of the folder."""
        return json.loads((self.folder / name).read_text())

    def gradient_rounding(self):
        """How far the README says that stored gradients are from float64, of their total norm."""
        text = (self.folder / 'README.md').read_text()
        found = re.search(r'gradient entries within ([0-9.e-]+) of the total gradient norm', text)
        return float(found[1]) if found else 0.0

    def learning_rate(self):
        """What the README of the trajectory names."""
        text = (self.folder / 'trajectory/README.md').read_text()
        return float(re.search(r'learning rate ([0-9.e-]+)', text)[1])


@functools.cache
def golden_model(folder):
    """Each folder is read once."""
    return GoldenModel(folder)
