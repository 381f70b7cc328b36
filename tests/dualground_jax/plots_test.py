"""Pictures: what they show, degenerate input, nothing left behind on failure."""

import sys

import numpy as np
import pytest

from dualground_jax import plots

ROWS = [
    {'step': 10, 'train/loss': 9.0, 'train/cls': 0.3, 'train/grad_norm': 2.0},
    {'step': 20, 'train/loss': 7.0, 'train/cls': 0.2, 'train/grad_norm': 1.0},
    {'step': 20, 'val/MR-full-mAP': 30.0, 'val/MR-full-R1@0.5': 50.0},
    {'step': 30, 'val/MR-full-mAP': 20.0, 'val/MR-full-R1@0.5': 90.0},
]
EXAMPLE = dict(
    query='a dog runs', vid='v', duration=100.0, clip_length=2.0, saliency=[0.1] * 50,
    labels=[6.0] * 50, windows=[[10, 20], [40, 50]], predictions=[[12, 22, 0.9], [0, 4, 0.2]],
)


def is_png(path):
    return path.read_bytes()[:8] == b'\x89PNG\r\n\x1a\n'


def test_training_figure_marks_the_best_step():
    _, right = plots.training_figure(ROWS, ('MR-full-mAP',), 'val').axes
    assert 'best: 20' in right.get_legend_handles_labels()[1]
    _, right = plots.training_figure(ROWS, ('MR-full-R1@0.5',), 'val').axes
    assert 'best: 30' in right.get_legend_handles_labels()[1]


def test_figures_of_highlight_sets(tmp_path):
    rows = [{'step': i, 'train/loss': 1.0 - i, 'train/cls': -i} for i in (1, 2)]
    rows.append({'step': 2, 'val/mAP': 0.4, 'val/BK-mAP': 0.4})
    left, right = plots.training_figure(rows, ('mAP',), 'val').axes
    assert left.get_yscale() == 'symlog' and right.get_title() == 'val metrics'
    assert 'best: 2' in right.get_legend_handles_labels()[1]
    plots.save(plots.training_figure(rows, ('mAP',), 'val'), tmp_path / 'a.png')
    figure = plots.grounding_figure(EXAMPLE | dict(windows=[], labels=[0.0, 1.0] * 25))
    assert '(0–1)' in figure.axes[-1].get_ylabel()
    assert is_png(tmp_path / 'a.png')


def test_grounding_figure_shows_true_and_found_windows():
    bars = plots.grounding_figure(EXAMPLE).axes[0]
    shown = sorted((p.get_x(), p.get_x() + p.get_width()) for p in bars.patches)
    assert shown == [(0, 4), (10, 20), (12, 22), (40, 50)]
    assert [t.get_text() for t in bars.texts] == ['0.90', '0.20']


@pytest.mark.parametrize('rows', [[], ROWS[:1], ROWS[2:3]])
def test_training_figure_of_little(rows, tmp_path):
    plots.save(plots.training_figure(rows, ('MR-full-mAP',), 'val'), tmp_path / 'a.png')
    assert is_png(tmp_path / 'a.png')


@pytest.mark.parametrize(
    'change',
    [
        dict(),
        dict(windows=[]),
        dict(labels=None),
        dict(predictions=[]),
        dict(saliency=[1.0], labels=[12.0], duration=2.0),
        dict(query='long ' * 60),
    ],
)
def test_grounding_figure_of_little(change, tmp_path, monkeypatch):
    # Global state, such as a display: importing it fails from here on.
    monkeypatch.setitem(sys.modules, 'matplotlib.pyplot', None)
    plots.save(plots.grounding_figure({**EXAMPLE, **change}), tmp_path / 'a.png')
    assert is_png(tmp_path / 'a.png')


def test_a_failed_drawing_leaves_no_file(tmp_path):
    with pytest.raises(ValueError):
        plots.save(plots.grounding_figure({**EXAMPLE, 'labels': np.zeros(3)}), tmp_path / 'a.png')
    figure = plots.grounding_figure(EXAMPLE)
    figure.savefig = lambda path, **_: (path.write_text('half'), 1 / 0)
    with pytest.raises(ZeroDivisionError):
        plots.save(figure, tmp_path / 'a.png')
    assert not list(tmp_path.iterdir())
