"""Tables as text: columns that line up, numbers that are missing."""

from dualground_jax.metrics import tables


def test_plain_table_lines_up():
    rows = [['metric', 'A', 'interval'], ['mAP', '7.25', '[6, 8] *'], ['R1@0.5', '', '']]
    assert tables.plain(rows, left=(0, -1)).splitlines() == [
        'metric     A  interval', 'mAP     7.25  [6, 8] *', 'R1@0.5']


def test_markdown_table_lines_up_and_says_which_columns_are_numbers():
    lines = tables.markdown(['', 'n'], [['a long name', 1], ['b', 1234]]).splitlines()
    assert lines == ['|             |    n |', '| ----------- | ---: |',
                     '| a long name |    1 |', '| b           | 1234 |']
    assert tables.markdown(['k', 'n'], []).splitlines() == ['| k   |   n |', '| --- | --: |']


def test_cells():
    assert tables.number(None) == tables.spread(None, None) == tables.interval(None) == '–'
    assert tables.number(0.1234, 3) == '0.123'
    assert tables.spread(1, None) == '1.00' and tables.spread(1, 0.5) == '1.00 ± 0.50'
    assert tables.interval(dict(value=None, low=0, high=1)) == '– [0.00, 1.00]'
