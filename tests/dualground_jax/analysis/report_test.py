"""Tables of a report: each pair of roles once, rows that lack a column."""

import csv

from dualground_jax.analysis import report


def test_rows_of_a_table_may_lack_columns(tmp_path):
    """Splits differ in their metrics: one has no long windows."""
    path = tmp_path / 't.csv'
    report.write_table(path, [dict(split='train', a=1), dict(split='val', a=2, b=3)])
    with open(path, newline='') as file:
        assert list(csv.DictReader(file)) == [
            dict(split='train', a='1', b=''), dict(split='val', a='2', b='3')]
    report.write_table(path, [])
    assert path.read_text() == ''


def test_each_pair_of_roles_is_told_once():
    one, other = dict(sum=1), dict(sum=2)
    part = dict(correlation=dict(start=dict(eos=one), eos=dict(start=one, words=other),
                                 words=dict(eos=other)))
    assert list(report.pairs_of(part)) == [('start', 'eos', one), ('eos', 'words', other)]
