"""What comes with the package is what its card says."""

import json
import re

from ml_collections import ConfigDict

from data_pipelines import pairs
from dualground_jax import demo, worlds
from dualground_jax.encoders import clip, contrastive


def test_the_encoder_finds_what_its_card_says(monkeypatch, tmp_path):
    """On pictures that are drawn anew: another way of drawing them would be told."""
    files = [path for path in demo.ENCODER.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 3e6
    told, config = (demo.ENCODER / 'README.md').read_text().split('```')[:2]
    config = ConfigDict(json.loads(config.removeprefix('json')))
    encoder = clip.load(demo.ENCODER, batch_size=128)
    found = contrastive.evaluate(
        encoder, pairs.held_out(config.seed, config.evaluate.pairs, config.world))
    numbers = map(float, re.findall(r'\b[01]\.\d{3}\b', told))
    for name, number in zip(('to_sentence', 'to_picture', 'swaps'), numbers, strict=True):
        assert abs(found[name] - number) < 0.01, name  # another processor rounds otherwise
    assert min(found['to_sentence'], found['to_picture']) > 0.75
    monkeypatch.chdir(tmp_path)  # where no such folder is
    assert worlds.encoder_source('dualground_jax/demo/encoder') == str(demo.ENCODER)
