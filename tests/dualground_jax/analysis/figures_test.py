"""Figures of `analyse`: what they show, that it can be read, files whole and always the same."""

import html
import itertools
import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib import colors
from matplotlib.image import imread
from matplotlib.text import Text

from data_pipelines.errors import UserError
from dualground_jax.analysis import figures

WHITE, DARK, BLACK = '#ffffff', '#0d1117', '#000000'
# What people without one kind of cone see, of linear RGB: Machado, Oliveira and Fernandes,
# IEEE Transactions on Visualization and Computer Graphics 15(6), 2009, severity 1.
VISION = {
    'full': np.eye(3),
    'protanopia': [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    'deuteranopia': [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    'tritanopia': [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                   [0.004733, 0.691367, 0.303900]],
}
SPLIT = dict(
    x=[0.1, 0.2, 0.4], y=[0.3, 0.1, 0.2], edges=np.linspace(-1, 1, 5), pearson=0.625,
    pearson_histogram=[1, 0, 2, 5], spearman=-0.5, spearman_histogram=[0, 4, 4, 0],
    pearson_pooled=0.375, n=8,
)
UNDEFINED = dict(
    x=[], y=[], edges=np.linspace(-1, 1, 3), pearson=None, pearson_histogram=[0, 0],
    spearman=float('nan'), spearman_histogram=[0, 0], pearson_pooled=None, n=0,
)
ABLATION = {
    'full': {'train': (80.25, 79, 82), 'val': (60.5, 60.5, 60.5)},
    'from $5 to $10 & <b>': {'train': (-10.125, -13, -8), 'val': (None, None, None)},
    '[EOS] alone': {'val': (40.5, None, None)},
}
EXAMPLE = dict(
    query='a dog gets from $5 to $10', vid='v', duration=8.0, clip_length=2.0,
    roles={'[EOS]': [0.1, 0.2, 0.4, 0.2], 'words': np.zeros(4)}, saliency=[0.1, 0.9, -0.3, 0.0],
    labels=[0, 12, 3, 0], windows=[[2, 4], [6, 8]], predictions=[[2, 5, 0.9], [0, 4, 0.2]],
    words=['a', 'dog', '$5', '$10'], weights=np.array([[0.1, 0.7, 0.1, 0.1], [0, 0, 0.5, 0.5]]),
    phrase_weights=[0.75, 0.25], energy=np.array([[0, 1, 4, 2], [0, 0, 0, 0.]]),
)
LONG = 'an extraordinarily verbose description of nothing in particular ' * 5


def linear(colour):
    c = np.array(colors.to_rgb(colour))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """Contrast ratio of WCAG 2."""
    low, high = sorted(linear(c) @ [0.2126, 0.7152, 0.0722] for c in (one, other))
    return (high + 0.05) / (low + 0.05)


def lab(rgb):
    """CIELAB of linear RGB, whose distances are those the eye sees; about 2 is the least."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722],
                    [0.0193, 0.1192, 0.9505]]) @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def ablation(conditions, series):
    return {f'condition {i} with a rather long name': {
        f'model {j} of many words': ((-1) ** i * (70 - 3 * i - j), (-1) ** i * 80 - i, 60 - i)
        for j in range(series)} for i in range(conditions)}


def bins(count, series):
    return {f'{i}0–{i + 1}0 s': {
        f'model {j} of many words': (60 - i - j, 50 - i, 65 - j) for j in range(series)
    } | {'queries': 10 ** i} for i in range(count)}


def wide_example(clips, words, phrases):
    rng = np.random.default_rng(0)
    return {
        **EXAMPLE, 'query': LONG, 'vid': 'v' * 40, 'duration': 2. * clips,
        'roles': {name: rng.random(clips) for name in ('[EOS]', 'words', 'dummies', 'phrases')},
        'saliency': rng.normal(size=clips), 'labels': rng.integers(0, 13, clips),
        'windows': [[0, 2 * clips]], 'predictions': [[0, 2 * clips, 1.0]] * 9,
        'words': ['extraordinarily'] * words, 'weights': rng.random((phrases, words)),
        'phrase_weights': np.full(phrases, 1 / phrases), 'energy': rng.random((phrases, clips)),
    }


@pytest.fixture
def drawn(monkeypatch):
    """Returns a function from a figure to the texts that are drawn of it; warnings are errors."""
    texts = []

    def draw(text, renderer, *args, **kwargs):
        if text.get_visible() and text.get_text().strip():
            texts.append(text)
        original(text, renderer, *args, **kwargs)

    def draw_figure(figure):
        texts.clear()
        with warnings.catch_warnings(action='error'):
            figure.draw_without_rendering()
        # The layout draws too, and labels may have moved since.
        return list(dict.fromkeys(texts))

    original = Text.draw
    monkeypatch.setattr(Text, 'draw', draw)
    return draw_figure


def bytes_of(paths):
    return [path.read_bytes() for path in paths]


def test_three_files_that_are_the_same_each_time(tmp_path):
    before = dict(matplotlib.rcParams)
    paths, again = [
        figures.save_all(figures.ablation_figure(ABLATION, metric='mAP', title='Token roles'),
                         str(tmp_path / name)) for name in ('v1.0', 'again')]
    assert [path.name for path in paths] == ['v1.0.svg', 'v1.0.pdf', 'v1.0.png']
    assert sorted(tmp_path.iterdir()) == sorted(paths + again)
    assert bytes_of(paths) == bytes_of(again)

    svg, pdf, png = bytes_of(paths)
    text = html.unescape(svg.decode())
    for name in ('Token roles', 'mAP', 'train', 'val', '80.2', '60.5', '−10.1', *ABLATION):
        assert f'>{name}</text>' in text, name
    assert pdf.startswith(b'%PDF') and b'CreationDate' not in pdf and b'dc:date' not in svg
    assert png.startswith(b'\x89PNG')
    alpha = imread(paths[2])[..., 3]
    assert alpha[0, 0] == 0 and alpha.max() == 1 and alpha.shape[1] >= 7 * 150
    assert dict(matplotlib.rcParams) == before


def test_saving_that_fails_leaves_what_was_there(tmp_path):
    figure = figures.heads_figure([[1.0]], title='t')

    def savefig(path, format, **_):
        path.write_text('half')
        if format == 'png':
            raise OSError('disk full')

    figure.savefig = savefig
    (tmp_path / 'a.svg').write_text('before')
    with pytest.raises(OSError, match='disk full'):
        figures.save_all(figure, tmp_path / 'a')
    assert [path.name for path in tmp_path.iterdir()] == ['a.svg']
    assert (tmp_path / 'a.svg').read_text() == 'before'


def test_colours_can_be_read_on_both_pages_and_by_everyone():
    assert min(contrast(figures.INK, page) for page in (WHITE, BLACK)) >= 4.5
    for look in figures.LOOKS:
        assert min(contrast(look.colour, page) for page in (WHITE, DARK)) >= 3, look
    for one, other in itertools.combinations(figures.LOOKS, 2):
        assert all(a != b for a, b in zip(one, other, strict=True))
        for name, matrix in VISION.items():
            seen = [lab(np.array(matrix) @ linear(look.colour)) for look in (one, other)]
            assert np.linalg.norm(seen[0] - seen[1]) > 15, (one, other, name)
    assert min(contrast(figures.SIGNED(x)[:3], figures.BLACK)
               for x in np.linspace(0, 1, 21)) >= 4.5


def shown_colours(figure):
    lines = [line.get_color() for axes in figure.axes for line in axes.lines]
    edges = [patch.get_edgecolor() for axes in figure.axes for patch in axes.patches
             if patch.get_linewidth() and patch.get_edgecolor()[3]]
    return {colors.to_hex(colour) for colour in lines + edges}


@pytest.mark.parametrize('make', [
    lambda: figures.correlation_figure({'train': SPLIT, 'val': SPLIT}, title='t'),
    lambda: figures.ablation_figure(ABLATION, metric='m', title='t'),
    lambda: figures.length_figure(bins(3, 4), metric='m', title='t'),
    lambda: figures.attention_figure(EXAMPLE),
    lambda: figures.phrase_figure(EXAMPLE),
    lambda: figures.heads_figure([[None, 0.5]], title='t'),
], ids=['correlation', 'ablation', 'length', 'attention', 'phrase', 'heads'])
def test_nothing_has_another_colour_nor_a_background(make, drawn):
    figure = make()
    known = {colors.to_hex(c) for c in (figures.INK, *(look.colour for look in figures.LOOKS))}
    assert shown_colours(figure) <= known
    cells = {text for text in figure.axes[0].texts if text.get_color() == figures.BLACK}
    with matplotlib.rc_context(figures.STYLE):
        texts = drawn(figure)
    assert {text.get_color() for text in texts if text not in cells} == {figures.INK}
    assert all(axes.get_facecolor()[3] == 0 for axes in figure.axes)


@pytest.mark.parametrize('make', [
    lambda: figures.correlation_figure({'train': SPLIT, 'val': SPLIT}, title=LONG),
    lambda: figures.correlation_figure({'val': SPLIT}, title='t'),
    lambda: figures.correlation_figure({'train': UNDEFINED, 'val': UNDEFINED}, title='t'),
    lambda: figures.ablation_figure(ablation(10, 4), metric='m', title=LONG),
    lambda: figures.ablation_figure(ABLATION, metric='m', title='t'),
    lambda: figures.ablation_figure({'full': {'val': (None,) * 3}}, metric='m', title='t'),
    lambda: figures.length_figure(bins(7, 4), metric='m', title=LONG),
    lambda: figures.length_figure({'1': {'full': (5., None, None), 'queries': 1}}, metric='m',
                                  title='t'),
    lambda: figures.attention_figure(wide_example(150, 1, 1)),
    lambda: figures.attention_figure({**wide_example(1, 1, 1), 'labels': None, 'predictions': [],
                                      'windows': []}),
    lambda: figures.phrase_figure(wide_example(150, 40, 8)),
    lambda: figures.phrase_figure(wide_example(1, 1, 1)),
    lambda: figures.heads_figure(np.linspace(-1, 1, 48).reshape(3, 16), title=LONG),
    lambda: figures.heads_figure([[None]], title='t'),
])
def test_no_text_meets_another_or_the_edge(make, drawn):
    with warnings.catch_warnings(action='error'):
        figure = make()
    boxes = {text: text.get_window_extent() for text in drawn(figure)}
    for text, box in boxes.items():
        assert box.x0 >= 0 and box.y0 >= 0, text
        assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text
    # A box around slanted words says nothing of where they are.
    straight = [text for text in boxes if text.get_rotation() in (0, 90)]
    for one, other in itertools.combinations(straight, 2):
        a, b = boxes[one].padded(-1), boxes[other].padded(-1)
        assert not a.overlaps(b), (one, other)


def test_correlations_are_shown_as_densities_with_their_means(drawn):
    figure = figures.correlation_figure(
        {'train': SPLIT, 'val': {**SPLIT, 'y': [1, 2, 3], 'pearson': None}}, title='t')
    train, val, pearson, _ = figure.axes
    for axes, y in ((train, SPLIT['y']), (val, [1, 2, 3])):
        points, = axes.lines
        assert points.get_rasterized()
        np.testing.assert_array_equal(points.get_xydata(), np.stack([SPLIT['x'], y], 1))
    assert train.get_ylim() == val.get_ylim()
    heights, edges, _ = pearson.patches[0].get_data()
    expected, _ = np.histogram([-0.9] + 2 * [0.2] + 5 * [0.9], edges, density=True)
    np.testing.assert_allclose(heights, expected)
    assert [line.get_xdata()[0] for line in pearson.lines] == [0.625]
    texts = [text.get_text() for text in drawn(figure)]
    for label in ('train: pooled Pearson 0.38', 'train: mean 0.62, 8 samples',
                  'val: mean undefined, 8 samples', 'val: mean −0.50, 8 samples'):
        assert label in texts


def test_bars_and_their_intervals():
    axes, = figures.ablation_figure(ABLATION, metric='m', title='t').axes
    assert [bar.get_width() for bar in axes.patches] == [80.25, 60.5, -10.125, 40.5]
    assert len({bar.get_hatch() for bar in axes.patches}) == 2
    ends = [list(line.get_xdata()) for line in axes.lines if line.get_marker() == '|']
    assert ends == [[79, 82], [60.5, 60.5], [-13, -8]]
    assert [text.get_text() for text in axes.texts] == [
        '80.2', '60.5', '−10.1', '–', '–', '40.5']
    positions = [text.xy[0] for text in axes.texts]
    assert positions == [82, 60.5, -13, 0, 0, 40.5]


def test_lengths_show_the_gain_of_the_first_series(drawn):
    figure = figures.length_figure({
        '1–5': {'full': (30., 29, 31), '[EOS] alone': (27.5, 20, 30), 'queries': 1234},
        '6–9': {'full': (20., None, None), '[EOS] alone': (21., None, None), 'queries': 5},
        '10+': {'full': (None, None, None), 'queries': 0},
    }, metric='mAP', title='t')
    texts = [text.get_text() for text in drawn(figure)]
    assert [text for text in texts if text[0] in '+−–'] == ['+2.5', '−1.0', '–']
    assert '1–5\nn = 1,234' in texts and 'full − [EOS] alone' in texts
    series = [line.get_ydata() for line in figure.axes[0].lines if line.get_marker() in 'os']
    np.testing.assert_array_equal(series, [[30, 20, np.nan], [27.5, 21, np.nan]])


def test_attention_is_scaled_to_its_own_range():
    windows, attention, saliency, labels = figures.attention_figure(EXAMPLE).axes
    assert sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in windows.patches) == [
        (0, 4), (2, 4), (2, 5), (6, 8)]
    eos, words = attention.lines
    np.testing.assert_allclose(eos.get_xydata(), [[1, 0], [3, 1 / 3], [5, 1], [7, 1 / 3]])
    np.testing.assert_array_equal(words.get_ydata(), [0.5] * 4)  # all equal
    assert '0.10 to 0.40' in eos.get_label() and 'own range' in attention.get_ylabel()
    np.testing.assert_array_equal(saliency.lines[0].get_ydata(), EXAMPLE['saliency'])
    assert [bar.get_height() for bar in labels.patches] == EXAMPLE['labels']


def test_phrases_are_rows_of_words_weights_and_energy():
    panels = {axes.get_label(): axes for axes in figures.phrase_figure(EXAMPLE).axes}
    mesh, = panels['words'].collections
    np.testing.assert_array_equal(mesh.get_array(), EXAMPLE['weights'])
    assert [label.get_text() for label in panels['words'].get_xticklabels()] == EXAMPLE['words']
    assert [bar.get_width() for bar in panels['counts'].patches] == EXAMPLE['phrase_weights']
    assert [solid.get_rasterized() for solid in panels['scale'].collections][-1]
    assert panels['counts'].get_ylim() == panels['words'].get_ylim() == (1.5, -0.5)
    first, second = [patch.get_data() for patch in panels['time'].patches
                     if hasattr(patch, 'get_data') and not patch.get_fill()]
    np.testing.assert_allclose((0.4 - first.values) / 0.8, [0, 0.25, 1, 0.5])
    np.testing.assert_allclose(second.values, 1.0)  # all equal: in the middle
    np.testing.assert_array_equal(first.edges, [0, 2, 4, 6, 8])


def test_heads_keep_their_range_and_mark_what_is_undefined():
    values = [[0.25, None, -0.001], [float('nan'), -1, 1]]
    axes, bar = figures.heads_figure(values, title='t').axes
    mesh, = axes.collections
    assert mesh.get_clim() == (-1, 1) and bar.get_ylim() == (-1, 1)
    assert [(text.get_position(), text.get_text()) for text in axes.texts] == [
        ((0, 0), '+0.25'), ((2, 0), '+0.00'), ((1, 1), '−1.00'), ((2, 1), '+1.00')]
    hatched = {(patch.get_x(), patch.get_y()) for patch in axes.patches if patch.get_hatch()}
    assert hatched == {(0.5, -0.5), (-0.5, 0.5)}
    assert axes.get_ylim() == (1.5, -0.5)


def test_a_long_title_takes_no_room_from_what_is_below():
    one, many = [figures.heads_figure([[1]], title=title) for title in ('t', LONG)]
    lines = many.get_suptitle().count('\n')
    assert lines >= 4
    assert many.get_figheight() - one.get_figheight() >= lines * 10 * 1.2 / 72


def test_more_series_than_looks():
    with pytest.raises(UserError, match='found 5 series .*model 4.*expected at most 4'):
        figures.ablation_figure(ablation(1, 5), metric='m', title='t')
