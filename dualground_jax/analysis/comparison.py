"""Analyses of several runs side by side: mean and standard deviation over seeds."""

import pathlib

from flax import traverse_util

from data_pipelines.files import write_json, write_text
from dualground_jax.analysis import figures, report, scaling
from dualground_jax.analysis.ablation import CONDITIONS, TITLES
from dualground_jax.metrics import summary, tables

CORRELATIONS = ('pearson', 'spearman', 'pearson_pooled', 'spearman_pooled')
RELIANCE = dict(reliance='reliance, masked', reliance_by_swapping='reliance, swapped')
PHRASES = ('slot_entropy', 'slot_overlap', 'generator_entropy', 'generator_overlap',
           'effective_phrases', 'variance_within', 'centred_within', 'centred_between',
           'cosine_within', 'cosine_between')


def write(reports: dict[str, dict], folder: pathlib.Path) -> None:
    """Writes comparison.json, comparison.md and figures.

    Args:
        reports: name of the run -> its report.
        folder: gets the files.
    """
    found = compare(reports)
    write_json(folder / 'comparison.json', found)
    pictures, pieces = draw(found['groups'], folder), []
    for split in dict.fromkeys(row['split'] for row in found['groups']):
        part = {kind: [row for row in rows if row['split'] == split]
                for kind, rows in found.items()}
        pictures += draw_scaling(part['scaling'], folder, split)
        pieces.append(f'## {split}\n\n{markdown(part)}')
    pieces += [f'![{shows}]({name}.png)\n' for name, shows in pictures]
    text = '# Comparison of runs\n\nMean ± standard deviation over the runs of a row.\n\n'
    write_text(folder / 'comparison.md', text + '\n'.join(pieces))
    print(text + '\n'.join(pieces[: len(pieces) - len(pictures)]))


def compare(reports: dict[str, dict]) -> dict[str, list[dict]]:
    """Compares runs, of each split.

    Returns:
        Lists of dicts, which all have `split`:
        `groups`, runs whose configs are equal but for the seed: `values`, what of its config is not
        that of all groups; `runs`, their names; `numbers`, name -> mean, std (ddof 1; None of one
        run) and n;
        `differences`, of groups that differ in one value, from that with the first one: `key`,
        `values`, `first` (that value), `seeds` that both have, `numbers`, name -> a
        `scaling.t_interval` over these;
        `scaling`, see `scaling.fits`.
    """
    values = distinguishing({name: found['config'] for name, found in reports.items()})
    found = dict(groups=[], differences=[], scaling=[])
    for split in dict.fromkeys(split for each in reports.values() for split in each['splits']):
        names = [name for name, each in reports.items() if split in each['splits']]
        runs = [(values[name], reports[name]['config']['seed'],
                 numbers_of(reports[name]['splits'][split])) for name in names]
        groups = summary.over_seeds([(own, numbers) for own, _, numbers in runs])
        found['groups'] += [dict(
            split=split, values=group['values'], runs=[names[place] for place in group['runs']],
            numbers=group['numbers']) for group in groups]
        by_seed = [(group['values'], {runs[place][1]: runs[place][2] for place in group['runs']})
                   for group in groups]
        found['differences'] += [dict(split=split, **row) for row in _differences(by_seed)]
        found['scaling'] += [dict(split=split, **row) for row in scaling.fits(runs)]
    return found


def _differences(groups: list[tuple[dict, dict]]) -> list[dict]:
    """See `compare`; groups are (values, seed -> numbers)."""
    found = []
    for key in dict.fromkeys(key for values, _ in groups for key in values):
        first = {}  # what the other values are -> the first group
        for values, by_seed in groups:
            if key not in values:
                continue
            others = str({name: value for name, value in values.items() if name != key})
            other, there = first.setdefault(others, (values, by_seed))
            seeds = sorted(there.keys() & by_seed.keys())
            if other is values or not seeds:
                continue
            found.append(dict(key=key, values=values, first=other[key], seeds=seeds,
                              numbers=paired(there, by_seed, seeds)))
    return found


def paired(first: dict[int, dict], second: dict[int, dict], seeds: list[int]) -> dict[str, dict]:
    """Differences second - first of the numbers that both have of all seeds, with intervals.

    Args:
        first: seed -> numbers.
        second: likewise.
        seeds: that both have.
    """
    names = [name for name in second[seeds[0]]
             if all(name in part[seed] for part in (first, second) for seed in seeds)]
    return {name: scaling.t_interval([second[seed][name] - first[seed][name] for seed in seeds])
            for name in names}


def distinguishing(configs: dict[str, dict]) -> dict[str, dict]:
    """For each run the model's name, and what tells runs of one model apart, but for the seed."""
    flat = {name: traverse_util.flatten_dict(config, sep='.') for name, config in configs.items()}
    models = {name: values['model.name'] for name, values in flat.items()}
    keys = ['model.name']
    for model in dict.fromkeys(models.values()):
        group = [flat[name] for name in flat if models[name] == model]
        keys += [key for key in dict.fromkeys(key for values in group for key in values)
                 if len({str(values.get(key)) for values in group}) > 1]
    keys = [key for key in dict.fromkeys(keys) if key not in (summary.SEED, 'data.root')]
    return {name: {key: values[key] for key in keys if key in values}
            for name, values in flat.items()}


def numbers_of(part: dict) -> dict[str, float]:
    """The numbers of a split's part of a report that are compared, by name."""
    found = {name: part['ablation']['full'].get(name) for name in report.SHOWN_METRICS
             if part['ablation']}
    found |= {name: part['performance'][name]['value'] for name in CONDITIONS
              if name in part['performance']}
    found |= {name: part['gains']['by_query_length'][name].get('full', {}).get('value')
              for name in part['gains'].get('by_query_length', ())}
    reliance = part['reliance'] or {}
    for name, score in (('reliance', reliance),
                        ('reliance_by_swapping', reliance.get('by_swapping', {}))):
        if score and (score['low'], score['high']) != (0, 1):  # else it says nothing
            found[name] = score['value']
    if pair := report.sentence_pair(part):
        found |= {name: pair[name] for name in CORRELATIONS}
    for name in PHRASES:
        if 'phrases' in part:
            found[name] = part['phrases'][name]['mean']
    return {name: value for name, value in found.items() if value is not None}


# Tables and figures ---------------------------------------------------------------------------


def label(values: dict) -> str:
    """Short name of a group: 'flash_vtg, tokens=eos'."""
    return ', '.join(str(value) if key == 'model.name' else f'{_short(key)}={value}'
                     for key, value in values.items())


def _short(key: str) -> str:
    return key.rpartition('.')[2]


def markdown(found: dict[str, list[dict]]) -> str:
    """The tables of what `compare` found of a split."""
    rows, differences, fits = (found[kind] for kind in ('groups', 'differences', 'scaling'))
    shown = (
        ('Trained so, evaluated on all tokens that the model sees',
         {name: name.removeprefix('MR-full-').removeprefix('HL-min-')
          for name in report.SHOWN_METRICS}),
        ('Performance by words of the query', {name: name for name in summary.QUERY_LENGTHS}),
        ('Performance with parts of the text, at inference',
         {name: TITLES[name] for name in CONDITIONS}),
        ('Reliance on [EOS], and correlation of the attention to [EOS] and to the words (sum)',
         {**RELIANCE, **{name: name.replace('_pooled', ', all clips') for name in CORRELATIONS}}),
        ('Phrases', {name: name.replace('_', ', ') for name in PHRASES}),
    )
    pieces = []
    for title, columns in shown:
        columns = {name: column for name, column in columns.items()
                   if any(name in row['numbers'] for row in rows)}
        if columns:
            body = [[label(row['values']), len(row['runs']),
                     *(tables.spread(*_moments(row, name)) for name in columns)]
                    for row in rows if columns.keys() & row['numbers'].keys()]
            pieces.append(f'{title}:\n\n'
                          + tables.markdown(['', 'runs', *columns.values()], body))
    followed = {'full': TITLES['full'], **RELIANCE, 'pearson': 'pearson', 'spearman': 'spearman'}
    paired = [row for row in differences if len(row['seeds']) > 1]
    for title, columns in (
            ('Differences from the runs with the first value, all else alike, paired over seeds, '
             'with 95 % intervals', followed),
            ('The same, by words of the query', {name: name for name in summary.QUERY_LENGTHS})):
        body = [[label(row['values']), label({row['key']: row['first']}), len(row['seeds']),
                 *(tables.interval(row['numbers'].get(name)) for name in columns)]
                for row in paired if columns.keys() & row['numbers'].keys()]
        if body:
            pieces.append(f'{title}:\n\n' + tables.markdown(
                ['', 'from', 'seeds', *columns.values()], body))
    fits = [row for row in fits if row['name'] in followed]
    if fits:
        pieces.append('Slope of each doubling, and exponent of a power law; means over seeds, with '
                      '95 % intervals:\n\n' + tables.markdown(
            ['', 'size', 'sizes', 'seeds', 'number', 'a doubling', 'exponent'],
            [[label(row['values']), _short(row['key']), ' '.join(map(str, row['sizes'])),
              len(row['seeds']), followed[row['name']], tables.interval(row['per_doubling'], 3),
              tables.interval(row['exponent'], 3)] for row in fits]))
    return '\n'.join(pieces)


def draw(rows: list[dict], folder: pathlib.Path) -> list[tuple[str, str]]:
    """Figures of ablations at inference and by training; returns (name, what it shows).

    Args:
        rows: `groups` of `compare`; each split has its own figures.
        folder: gets the files.
    """
    pictures = []

    def save(kind: str, title: str, groups: dict) -> None:
        figure = figures.ablation_figure(
            groups, metric='performance, mean ± std over seeds', title=title)
        figures.save_all(figure, folder / kind)
        pictures.append((kind, title[0].lower() + title[1:]))

    for split in dict.fromkeys(row['split'] for row in rows):
        here = [row for row in rows if row['split'] == split]
        both = [row for row in here if row['numbers'].keys() >= {'pearson', 'mask_eos'}][:4]
        told = {key for row in both for key in row['values']
                if key == 'model.name' or len({str(own['values'].get(key)) for own in both}) > 1}
        if both:
            save(f'ablation_{split}', f'Token ablation at inference, {split}',
                 {TITLES[name]: {label({key: value for key, value in row['values'].items()
                                        if key in told}): _bar(row, name) for row in both}
                  for name in ('full', 'mask_eos', 'mask_words', 'swap_eos', 'swap_words')})
        trained = {}
        for row in here:
            values = dict(row['values'])
            if (tokens := values.pop('model.tokens', None)) and 'full' in row['numbers']:
                trained.setdefault(f'trained on {tokens}', {})[label(values)] = _bar(row, 'full')
        if trained and len({name for group in trained.values() for name in group}) <= 4:
            save(f'training_{split}', f'Token ablation by training, {split}', trained)
    return pictures


def draw_scaling(fits: list[dict], folder: pathlib.Path, split: str) -> list[tuple[str, str]]:
    """A figure for each size: performance and reliance over it; returns (name, what it shows)."""
    pictures = []
    for key in dict.fromkeys(row['key'] for row in fits):
        rows = [row for row in fits if row['key'] == key]
        panels = {}
        for name, shows in (('full', 'performance'), *RELIANCE.items()):
            curves = {label(row['values']): row for row in rows if row['name'] == name}
            if curves and len(curves) <= len(figures.LOOKS):
                panels[shows] = curves
        if panels:
            name, title = f'scaling_{split}_{_short(key)}', f'Over {_short(key)}, {split}'
            figures.save_all(
                figures.scaling_figure(panels, size=_short(key), title=title), folder / name)
            pictures.append((name, title[0].lower() + title[1:]))
    return pictures


def _moments(row: dict, name: str) -> tuple:
    found = row['numbers'].get(name, {})
    return found.get('mean'), found.get('std')


def _bar(row: dict, name: str) -> tuple:
    mean, std = _moments(row, name)
    return (mean, None, None) if std is None else (mean, mean - std, mean + std)
