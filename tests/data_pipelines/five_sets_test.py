"""Each of the five data sets from real annotations to its own metrics, by the command line.

Features are generated, of the true widths; records are the first few of each file.
"""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipelines import datasets, files, pipeline
from dualground_jax import checkpoints, cli, main
from tests.helpers import command_line
from tests.helpers.paths import REAL, REPO
from tests.helpers.release_files import needs_real_data, write_lines

pytest.importorskip('array_record', reason='array_record has no release for this platform')
pytestmark = needs_real_data

LIMIT, STEPS = 6, 20
# Compiling is what takes time here.
SMALL = dict(width=16, heads=2, ffn=16, input_layers=1, mlp_layers=1, strides='(1,)',
             dropout=0.0, input_dropout=0.0)
# Data set -> config, argument, limits of a batch that hold the first records.
SETS = {
    'qvhighlights': ('qvh', '', dict(max_clips=75, max_tokens=40)),
    'charades_sta': ('charades', '', dict(max_clips=64, max_tokens=23)),
    'tacos': ('tacos', '', dict(max_clips=224, max_tokens=32)),
    'tvsum': ('tvsum', ',domain=BK', dict(max_clips=200, max_tokens=32)),
    'youtube_highlights': ('youtube_hl', ',domain=dog', dict(max_clips=200, max_tokens=8)),
}
WIDTHS = {
    'qvhighlights': (768, 4096), 'charades_sta': (768, 4096), 'tacos': (2304 + 512, 512),
    'tvsum': (2304 + 512, 512), 'youtube_highlights': (512 + 2304, 512),
}


def first_batch(data, split, records):
    """The first records of a split, read from built data, or from files if there are none."""
    data = ConfigDict(data.to_dict() | dict(records=records))
    found = datasets.load_split(data, split)
    indices = np.arange(min(4, len(found.queries)))
    draws = [np.random.default_rng(index) for index in indices]
    return pipeline.collate(found, data, indices, draws)


# The others are of the forms of these two: moments, highlights.
@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.slow] * (name not in ('qvhighlights', 'tvsum')))
    for name in SETS])
def test_from_annotations_to_metrics(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(REPO)
    module, argument, limits = SETS[name]
    root, run, records = tmp_path / 'files', tmp_path / 'run', tmp_path / 'records'
    named = (f'--config=configs/{module}.py:runlocal,model=flash_vtg,root={root},'
             f'annotations={REAL / name}{argument}')
    sizes = dict(limits, limit=LIMIT)
    keys = [f'--config.data.{key}={value}' for key, value in sizes.items()]
    keys += [f'--config.model.{key}={value}' for key, value in SMALL.items()]
    keys += [f'--config.train.max_steps={STEPS}', '--config.train.batch_size=4',
             f'--config.train.eval_every={STEPS}', '--config.evaluate.batch_size=4',
             '--config.evaluate.pictures=0', '--config.mesh.data=1']

    def command(mode, *arguments, config=True):
        given = [named, *keys] if config else []
        argv = ['main', f'--mode={mode}', f'--workdir={run}', *given, *arguments]
        command_line.start(monkeypatch, argv)
        values = cli.parse(argv)
        assert values == ['main']
        main.main(values)
        return capsys.readouterr().out

    command('simulate')
    report = tmp_path / 'report.json'
    command('verify-data', f'--output={report}')
    assert json.loads(report.read_text())['counts']['error'] == 0
    command('build', f'--config.data.records={records}')
    # Of what was built, less than all stays in memory.
    of_records = [f'--config.data.records={records}', '--config.data.cache_gb=0.001']
    command('train', *of_records)

    config = checkpoints.Checkpoints(run).config('best')
    for split in ('train', 'val'):
        batch, expected = (first_batch(config.data, split, path) for path in (str(records), ''))
        assert (batch['video'].shape[2] - 2, batch['text'].shape[2]) == WIDTHS[name]
        for key, values in expected.items():
            assert batch[key].tobytes() == values.tobytes(), key

    history = files.load_jsonl(run / 'metrics.jsonl')
    losses = [row['train/loss'] for row in history if 'train/loss' in row]
    assert history[-1]['step'] == STEPS and len(losses) == STEPS // 2
    assert np.isfinite(losses).all()
    result = json.loads((run / 'results.json').read_text())
    assert set(datasets.DATASETS[name].selection) <= set(result['brief'])

    # The checkpoint gives the numbers and predictions of training, and these the same numbers.
    predictions, found = run / 'val_predictions.jsonl', run / 'val_metrics.json'
    written = predictions.read_bytes()
    predictions.unlink()
    command('evaluate', config=False)  # of the built data, which the checkpoint's config names
    assert predictions.read_bytes() == written
    found = json.loads(found.read_text())
    assert found == {key: result[key] for key in found}
    qids = [json.loads(line)['qid'] for line in written.splitlines()]
    rows = files.load_jsonl(REAL / name / datasets.DATASETS[name].annotations['val'])
    write_lines(tmp_path / 'truth.jsonl', [row for row in rows if row['qid'] in qids])
    command('score', f'--dataset={name}', f'--predictions={predictions}',
            f'--annotations={tmp_path / "truth.jsonl"}', f'--output={report}', config=False)
    assert json.loads(report.read_text()) == found
