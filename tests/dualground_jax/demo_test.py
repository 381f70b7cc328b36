"""What comes with the package is what its card says."""

import json
import re

import pytest
from ml_collections import ConfigDict

from data_pipelines import files, pairs
from dualground_jax import cli, demo, main
from dualground_jax.encoders import clip, contrastive
from dualground_jax.grounding.predictor import Predictor
from tests.helpers import command_line


def test_the_encoder_finds_what_its_card_says(monkeypatch, tmp_path):
    """On pictures that are drawn anew: another way of drawing them would be told."""
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
    assert demo.find('dualground_jax/demo/encoder') == str(demo.ENCODER)


@pytest.fixture(name='predict')
def predict_without_workdir(monkeypatch, tmp_path, capsys):
    """The command line where the repository is not: predicts, returns stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))

    def run(*arguments):
        argv = ['main', '--mode=predict', *arguments]
        command_line.start(monkeypatch, argv)
        main.main(cli.parse(argv))
        return capsys.readouterr()

    return run


def test_the_model_finds_the_known_moments(predict):
    """Of each sentence in its video; the command names neither a model nor an encoder."""
    records = files.load_jsonl(demo.ANNOTATIONS)
    videos = {path.stem: f'dualground_jax/demo/videos/{path.name}'
              for path in demo.VIDEOS.iterdir() if path != demo.ANNOTATIONS}
    assert {path.rpartition('.')[2] for path in videos.values()} == {'mp4', 'webm'}
    assert videos.keys() == {record['vid'] for record in records} and len(videos) == 3
    told = predict(*(f'--video={path}' for path in videos.values()),
                   *(f'--query={record["query"]}' for record in records))
    assert f'no --workdir: the model is {demo.MODEL}' in told.err
    rows = {(row['video'], row['query']): row for row in map(json.loads, told.out.splitlines())}
    for record in records:
        row = rows[demo.find(videos[record['vid']]), record['query']]
        assert row['model'] == str(demo.MODEL) and row['duration'] == record['duration']
        start, end, _ = row['windows'][0]
        overlaps = [max(min(end, e) - max(start, s), 0) / (max(end, e) - min(start, s))
                    for s, e in record['relevant_windows']]
        assert max(overlaps) > 0.6, record


def test_a_word_that_the_encoder_does_not_know_is_named_first(predict, monkeypatch):
    monkeypatch.setattr(Predictor, 'encode_video', None)
    with pytest.raises(SystemExit, match="^error: sentence '.*': unknown word 'helicopter'; .*$"):
        predict('--video=dualground_jax/demo/videos/bridge.webm', '--query=a helicopter runs')


def test_what_is_brought_along_is_small_and_names_no_place():
    paths = [path for folder in (demo.ENCODER, demo.MODEL, demo.VIDEOS)
             for path in folder.iterdir()]
    assert sum(path.stat().st_size for path in paths) < 4e6
    model = json.loads((demo.MODEL / 'config.json').read_text())
    assert {stream['source'] for stream in json.loads(model['data']['recipe'])['streams']} == {
        '../encoder'}
    for path in paths:
        content = path.read_bytes()
        assert not any(place in content for place in (b'/tmp/', b'/home/', b'/root/')), path
