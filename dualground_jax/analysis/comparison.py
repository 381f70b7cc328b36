"""Analyses of several runs side by side: mean and standard deviation over seeds."""

import pathlib

from flax import traverse_util

from data_pipelines.files import write_json, write_text
from dualground_jax.analysis import figures, report
from dualground_jax.analysis.ablation import CONDITIONS, TITLES
from dualground_jax.metrics import summary, tables

CORRELATIONS = ('pearson', 'spearman', 'pearson_pooled', 'spearman_pooled')
PHRASES = ('slot_entropy', 'slot_overlap', 'generator_entropy', 'generator_overlap',
           'effective_phrases', 'variance_within', 'centred_within', 'centred_between',
           'cosine_within', 'cosine_between')


def write(reports: dict[str, dict], folder: pathlib.Path) -> None:
    """Writes comparison.json, comparison.md and figures.

    Args:
        reports: name of the run -> its report.
        folder: gets the files.
    """
    rows = compare(reports)
    write_json(folder / 'comparison.json', rows)
    pictures = _draw(rows, folder)
    pieces = [_markdown(rows, split) for split in dict.fromkeys(row['split'] for row in rows)]
    pieces += [f'![{shows}]({name}.png)\n' for name, shows in pictures]
    text = '# Comparison of runs\n\nMean ± standard deviation over the runs of a row.\n\n'
    write_text(folder / 'comparison.md', text + '\n'.join(pieces))
    print(text + '\n'.join(pieces[: len(pieces) - len(pictures)]))


def compare(reports: dict[str, dict]) -> list[dict]:
    """Groups runs whose configs are equal but for the seed.

    Returns:
        for each group and split: values, what of its config is not that of all groups; split;
        runs, their names; numbers, name -> mean, std (ddof 1; None of one run) and n.
    """
    values = distinguishing({name: found['config'] for name, found in reports.items()})
    measured = [(name, split, numbers_of(part)) for name, found in reports.items()
                for split, part in found['splits'].items()]
    groups = summary.over_seeds([(values[name] | dict(split=split), numbers)
                                 for name, split, numbers in measured])
    return [dict(
        values=values[measured[group['runs'][0]][0]],
        split=group['values']['split'],
        runs=[measured[place][0] for place in group['runs']],
        numbers=group['numbers'],
    ) for group in groups]


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
    shown = [str(value) if key == 'model.name' else f'{key.rpartition(".")[2]}={value}'
             for key, value in values.items()]
    return ', '.join(shown)


def _markdown(rows: list[dict], split: str) -> str:
    rows = [row for row in rows if row['split'] == split]
    shown = (
        ('Trained so, evaluated on all tokens that the model sees',
         {name: name.removeprefix('MR-full-').removeprefix('HL-min-')
          for name in report.SHOWN_METRICS}),
        ('Performance with parts of the text, at inference',
         {name: TITLES[name] for name in CONDITIONS}),
        ('Reliance on [EOS], and correlation of the attention to [EOS] and to the words (sum)',
         {'reliance': 'reliance, masked', 'reliance_by_swapping': 'reliance, swapped',
          **{name: name.replace('_pooled', ', all clips') for name in CORRELATIONS}}),
        ('Phrases', {name: name.replace('_', ', ') for name in PHRASES}),
    )
    pieces = [f'## {split}\n']
    for title, columns in shown:
        columns = {name: column for name, column in columns.items()
                   if any(name in row['numbers'] for row in rows)}
        if columns:
            body = [[label(row['values']), len(row['runs']),
                     *(tables.spread(*_moments(row, name)) for name in columns)]
                    for row in rows if columns.keys() & row['numbers'].keys()]
            pieces.append(f'{title}:\n\n'
                          + tables.markdown(['', 'runs', *columns.values()], body))
    return '\n'.join(pieces)


def _draw(rows: list[dict], folder: pathlib.Path) -> list[tuple[str, str]]:
    pictures = []

    def draw(kind: str, title: str, groups: dict) -> None:
        figure = figures.ablation_figure(
            groups, metric='performance, mean ± std over seeds', title=title)
        figures.save_all(figure, folder / kind)
        pictures.append((kind, title[0].lower() + title[1:]))

    for split in dict.fromkeys(row['split'] for row in rows):
        here = [row for row in rows if row['split'] == split]
        both = [row for row in here if row['numbers'].keys() >= {'pearson', 'mask_eos'}]
        if both:
            draw(f'ablation_{split}', f'Token ablation at inference, {split}',
                 {TITLES[name]: {label(row['values']): _bar(row, name) for row in both[:4]}
                  for name in ('full', 'mask_eos', 'mask_words', 'swap_eos', 'swap_words')})
        trained = {}
        for row in here:
            values = dict(row['values'])
            if (tokens := values.pop('model.tokens', None)) and 'full' in row['numbers']:
                trained.setdefault(f'trained on {tokens}', {})[label(values)] = _bar(row, 'full')
        if trained and len({name for group in trained.values() for name in group}) <= 4:
            draw(f'training_{split}', f'Token ablation by training, {split}', trained)
    return pictures


def _moments(row: dict, name: str) -> tuple:
    found = row['numbers'].get(name, {})
    return found.get('mean'), found.get('std')


def _bar(row: dict, name: str) -> tuple:
    mean, std = _moments(row, name)
    return (mean, None, None) if std is None else (mean, mean - std, mean + std)
