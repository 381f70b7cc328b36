"""What `analyse` writes of one run: report.md, report.json, tables (CSV) and figures.

docs/analysis.md tells what each number is.
"""

import csv
import itertools
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from data_pipelines.files import write_json, write_text
from data_pipelines.tokens import EOS, MEAN, ROLES, WORD
from dualground_jax.analysis import correlation, figures
from dualground_jax.analysis.ablation import TITLES
from dualground_jax.analysis.attention import POOLINGS
from dualground_jax.metrics import tables
from dualground_jax.metrics.tables import interval, number, spread

SHOWN_METRICS = ('MR-full-mAP', 'MR-full-R1@0.5', 'MR-full-R1@0.7', 'HL-min-VeryGood-mAP',
                 'HL-min-VeryGood-Hit1')
ROLE_TITLES = dict(start='start-of-text', eos='[EOS]', mean='mean of the words', words='words',
                   punctuation='punctuation', dummies='dummies', phrases='phrases', p_eos='P_EOS')
NUMBERS = ('pearson', 'pearson_std', 'spearman', 'spearman_std', 'pearson_pooled',
           'spearman_pooled', 'n', 'n_constant', 'n_clips')


def write_table(path: os.PathLike, rows: list[dict]) -> None:
    """Writes a CSV file; what a row lacks stays empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with open(path, 'w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, columns)
        if rows:
            writer.writeheader()
        writer.writerows(rows)


def sentence_pair(part: dict, pooling: str = 'sum') -> dict | None:
    """Correlation of the sentence token with the words in a split's part of a report."""
    for sentence in (EOS, MEAN):
        pair = part['correlation'].get(ROLES[sentence], {}).get(ROLES[WORD])
        if pair:
            return pair[pooling]
    return None


def pairs_of(part: dict) -> Iterator[tuple[str, str, dict]]:
    """Each pair of roles of a split's part of a report once, with its correlations by pooling."""
    for a, b in itertools.combinations(part['correlation'], 2):
        if b in part['correlation'][a]:
            yield a, b, part['correlation'][a][b]


def summary(found: dict) -> str:
    """A few lines for the terminal."""
    lines = []
    for name, part in found['splits'].items():
        pair = sentence_pair(part)
        lines.append(f'{name}: {part["queries"]} queries; reliance on [EOS] '
                     f'{interval(part["reliance"])}; attention to [EOS] and words: ' + (
                         f'Pearson {number(pair["pearson"])}, Spearman {number(pair["spearman"])}'
                         if pair else 'one of them is not seen'))
    return '\n'.join(lines)


def write(found: dict, examples: list[tuple], folder: pathlib.Path) -> None:
    """Writes the whole analysis of one run.

    Args:
        found: what becomes report.json.
        examples: per split its name, the points of the scatter plot and the examples.
        folder: gets the files.
    """
    write_json(folder / 'report.json', found)
    _write_tables(found, folder)
    pictures = _draw(found, examples, folder)
    write_text(folder / 'report.md', _markdown(found, pictures))


def _write_tables(found: dict, folder: pathlib.Path) -> None:
    rows = {name: [] for name in ('correlation', 'correlation_by_head', 'ablation', 'gains')}
    for split, part in found['splits'].items():
        for a, b, by_pooling in pairs_of(part):
            rows['correlation'] += [
                dict(split=split, role_a=a, role_b=b, pooling=pooling)
                | {name: row[name] for name in NUMBERS} for pooling, row in by_pooling.items()]
        for pooling, by_kind in part['correlation_by_head'].items():
            rows['correlation_by_head'] += [
                dict(split=split, pooling=pooling, layer=layer + 1, head=head + 1, pearson=value,
                     spearman=by_kind['spearman'][layer][head])
                for (layer, head), value in np.ndenumerate(np.array(by_kind['pearson'], object))]
        rows['ablation'] += [
            dict(split=split, condition=condition, **values)
            | {f'performance_{k}': v for k, v in part['performance'][condition].items()}
            for condition, values in part['ablation'].items()]
        rows['gains'] += [
            dict(split=split, kind=kind, bin=name, queries=row['queries'])
            | {f'{what}_{k}': v for what, values in row.items() if what != 'queries'
               for k, v in values.items()}
            for kind, bins in part['gains'].items() for name, row in bins.items()]
    for name, listed in rows.items():
        write_table(folder / f'{name}.csv', listed)


# Figures --------------------------------------------------------------------------------------


def _draw(found: dict, examples: list[tuple], folder: pathlib.Path) -> list[tuple[str, str]]:
    """Draws all figures; returns (name, what it shows) of each."""
    pictures = []

    def save(name: str, shows: str, figure) -> None:
        figures.save_all(figure, folder / 'figures' / name)
        pictures.append((f'figures/{name}', shows))

    (folder / 'figures').mkdir()
    parts, model = found['splits'], found['model']
    pairs = {name: sentence_pair(part) for name, part in parts.items()}
    drawn = {name: pairs[name] | points | dict(edges=correlation.BINS)
             for name, points, _ in examples if pairs[name]}
    if drawn:
        save('correlation', 'attention of clips to [EOS] and to the words',
             figures.correlation_figure(
                 drawn, title=f'{model}: attention to [EOS] and to the words (sum)'))
    measured = {name: part for name, part in parts.items() if part['performance']}
    if measured:
        groups = {}
        for name, part in measured.items():
            for condition, value in part['performance'].items():
                if part['same_as'].get(condition) != 'full':
                    groups.setdefault(TITLES[condition], {})[name] = _bar(value)
        save('ablation', 'performance with parts of the text',
             figures.ablation_figure(groups, metric=_performance(found),
                                     title=f'{model}: token ablation at inference'))
    for name, part in measured.items():
        for kind, what in (('query_length', 'words of the query'),
                           ('window_length', 'length of the true window')):
            bins = {title: {TITLES[c]: _bar(row[c]) for c in ('full', 'mask_words', 'mask_eos')
                            if c in row} | dict(queries=row['queries'])
                    for title, row in part['gains'][f'by_{kind}'].items()}
            if bins:
                metric = _performance(found) if kind == 'query_length' else 'mAP of the length'
                save(f'{kind}_{name}', f'gain by {what}, {name}', figures.length_figure(
                    bins, metric=metric, title=f'{model}, {name}: by {what}'))
    for name, pair in pairs.items():
        if pair:
            values = parts[name]['correlation_by_head']['sum']['pearson']
            save(f'heads_{name}', f'Pearson correlation in each head, {name}',
                 figures.heads_figure(values, title=f'{model}, {name}: Pearson of the attention to '
                                      '[EOS] and to the words (sum)'))
    for name, _, shown in examples:
        for row in shown:
            save(f'attention_{name}_{row["qid"]}', f'{name}, query {row["qid"]}',
                 figures.attention_figure(row | dict(roles=_drawn_roles(row['roles']))))
            if 'phrases' in row:
                save(f'phrases_{name}_{row["qid"]}', f'phrases of {name}, query {row["qid"]}',
                     figures.phrase_figure(row | row['phrases']))
    return pictures


def _bar(found: dict) -> tuple:
    return found['value'], found['low'], found['high']


def _performance(found: dict) -> str:
    return ' + '.join(found['selection']) + (' (mean)' if len(found['selection']) > 1 else '')


def _drawn_roles(roles: dict) -> dict:
    """At most four roles, those that the paper speaks of first."""
    order = ('eos', 'mean', 'words', 'phrases', 'dummies', 'start', 'p_eos', 'punctuation')
    return {ROLE_TITLES[name]: roles[name] for name in [n for n in order if n in roles][:4]}


# Markdown -------------------------------------------------------------------------------------


def _markdown(found: dict, pictures: list[tuple[str, str]]) -> str:
    parts = found['splits']
    asked = found['settings']
    first = ', '.join(f'{name} ({part["queries"]} queries)' for name, part in parts.items())
    pieces = [
        f'# How much {found["model"]} leans on [EOS]\n\n'
        f'Seed {found["seed"]}, best checkpoint of step {asked["step"]}; {first}'
        + (f', the first {asked["limit"]} of each' if asked['limit'] else '')
        + f'. Roles that the model sees: {", ".join(found["seen_roles"])}. Intervals are 95 %, '
        'bootstrap over the queries. What each number is: docs/analysis.md of dualground_jax.\n',
        _reliance_section(found),
        _correlation_section(parts),
        _ablation_section(found),
        _gain_section(parts),
        _phrase_section(parts),
        '## Figures\n\n' + '\n'.join(f'![{shows}]({name}.png)\n' for name, shows in pictures),
    ]
    return '\n'.join(piece for piece in pieces if piece)


def _reliance_section(found: dict) -> str:
    rows = []
    for name, part in found['splits'].items():
        for how, score in (('masked', part['reliance']),
                           ('swapped', (part['reliance'] or {}).get('by_swapping'))):
            if score:
                told = (score['low'], score['high']) != (0, 1)
                rows.append([f'{name}, {how}', interval(score) if told else 'cannot be told',
                             interval(score['gain_of_text'])])
    return (
        '## Reliance on [EOS]\n\n'
        f'The share of [EOS] in what the text adds to {_performance(found)}: 1 if all hangs on '
        '[EOS], 0 if all hangs on the words, the others masked or taken from another query.\n\n'
        + tables.markdown(['split, absent tokens', 'reliance', 'what the text adds'], rows))


def _correlation_section(parts: dict) -> str:
    columns = ['roles', 'split', 'pooling', 'Pearson ± std', 'Spearman ± std',
               'Pearson, all clips', 'Spearman, all clips', 'n', 'constant']
    rows = []
    for name, part in parts.items():
        for a, b, by_pooling in pairs_of(part):
            for pooling in POOLINGS if (a, b) == ('eos', 'words') else ('sum',):
                row = by_pooling[pooling]
                rows.append([
                    f'{ROLE_TITLES[a]} – {ROLE_TITLES[b]}', name, pooling,
                    *(spread(row[kind], row[f'{kind}_std']) for kind in correlation.KINDS),
                    *(number(row[f'{kind}_pooled']) for kind in correlation.KINDS),
                    row['n'], row['n_constant']])
    alignment = sorted({role for part in parts.values() for role in part['alignment']},
                       key=list(ROLES).index)
    aucs = [[ROLE_TITLES[role], *(number(part['alignment'].get(role, {}).get('mean', {}).get('auc'))
                                  for part in parts.values())] for role in alignment]
    return (
        '## Attention\n\nCorrelation over the clips of a video between the attention to two roles, '
        'mean over layers and heads, the keys of a role pooled. Sums over words grow with the '
        'query: read what is over all clips with pooling mean.\n\n' + tables.markdown(columns, rows)
        + '\nAUC: how often a clip inside the true moments gets more attention from a role, mean '
        'over its keys, than one outside (0.5: chance).\n\n'
        + tables.markdown(['role', *parts], aucs))


def _ablation_section(found: dict) -> str:
    pieces = []
    for name, part in found['splits'].items():
        if part['ablation']:
            shown = [m for m in SHOWN_METRICS
                     if m in part['ablation']['full'] and [m] != found['selection']]
            rows = [[TITLES[condition], interval(part['performance'][condition]),
                     *(number(values.get(m)) for m in shown)]
                    for condition, values in part['ablation'].items()
                    if part['same_as'].get(condition) != 'full']
            unseen = [TITLES[c] for c, same in part['same_as'].items() if same == 'full']
            pieces.append(f'{name}:\n\n' + tables.markdown(
                ['text', _performance(found), *shown], rows) + (
                f'\nNothing changes {", ".join(unseen)}: the model sees no such tokens, or there '
                'are none.\n' if unseen else ''))
        else:
            pieces.append(f'{name} has no labels: nothing is scored.\n')
    return '## Token ablation\n\n' + '\n'.join(pieces)


def _gain_section(parts: dict) -> str:
    pieces = []
    columns = ['', 'queries', 'all tokens', 'without words', 'without [EOS]', 'gain of words',
               'gain of [EOS]', 'AUC [EOS]', 'AUC words']
    for name, part in parts.items():
        rows = []
        for kind, unit in (('overall', ' queries'), ('by_query_length', ' words'),
                           ('by_window_length', ' windows')):
            for title, row in part['gains'].get(kind, {}).items():
                auc = part['alignment_by_query_length'].get(title, {})
                rows.append([title + unit, row['queries'], *(
                    interval(row.get(k)) for k in ('full', 'mask_words', 'mask_eos',
                                                   'gain_of_words', 'gain_of_eos')),
                    number(auc.get('eos')), number(auc.get('words'))])
        if rows:
            pieces.append(f'{name}:\n\n' + tables.markdown(columns, rows))
    note = ('Gain: what is lost without them. A query counts for each length of window that it '
            'has. AUC: as above.\n\n')
    return '## Gain by length\n\n' + note + '\n'.join(pieces) if pieces else ''


def _phrase_section(parts: dict) -> str:
    names = dict(generator_entropy='entropy, generator', slot_entropy='entropy, refined',
                 generator_overlap='overlap, generator', slot_overlap='overlap, refined',
                 effective_phrases='effective number of phrases',
                 variance_within='share of the variance within a query',
                 centred_within='centred cosine within a query',
                 centred_between='centred cosine between queries',
                 cosine_within='cosine within a query', cosine_between='cosine between queries')
    shown = {name: part['phrases'] for name, part in parts.items() if 'phrases' in part}
    if not shown:
        return ''
    rows = [[title, *(spread(p[key]['mean'], p[key]['std'], 3) for p in shown.values())]
            for key, title in names.items()]
    rows.append(['weights of the phrases', *(', '.join(number(w) for w in p['phrase_weights'])
                                             for p in shown.values())])
    return ('## Phrases\n\nEntropy over the words, relative to equal weights; overlap: mass that '
            'two phrases share. Variance and cosines of the embeddings, centred: by the mean of '
            'all phrases. Of N phrases as alike as those of different queries, (N - 1) / N of the '
            'variance lies within a query; of N equal ones 0.\n\n'
            + tables.markdown(['', *shown], rows))
