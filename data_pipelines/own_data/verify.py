"""Mode `verify-data`: checks the folders that a config names before hours are spent on them.

All splits are read as training reads them, and every problem is collected: *errors*, which training
would refuse; *warnings*, which it would not notice; *notes*, facts worth knowing. See
docs/own_data.md for what each of them means.
"""

import collections
import dataclasses
import itertools
import pathlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from ml_collections import ConfigDict

from data_pipelines import annotations, features, release, saliency, skip_list, tokens
from data_pipelines.errors import DataError, UserError
from data_pipelines.files import write_json, write_jsonl
from data_pipelines.own_data import inspection

EXAMPLES = 3  # of each kind that are printed
COMMONEST = 12  # values of a distribution that are printed
CLIP_TOLERANCE = 2  # clips more or fewer than the duration says, and between streams
CLIP_LENGTH_TOLERANCE = 0.1  # relative, of the videos' median
SAMPLE = 64  # queries whose rows are compared
SAMPLE_ROWS = 6  # first rows of each
SAME = 0.98  # mean cosine similarity from which on rows count as the same in every query

# Kinds of problems, in the order of the report: level, what the records or files are.
KINDS = {
    'folder': ('error', 'folders that do not exist'),
    'annotation file': ('error', 'annotation files that cannot be read'),
    'record': ('error', 'records that are not as expected'),
    'unlabelled': ('error', 'records to train or select on without their answers'),
    'empty target': ('error', 'records to train on with windows without length'),
    'video missing': ('error', 'videos without a feature file'),
    'video file': ('error', 'video features that cannot be used'),
    'video width': ('error', 'video features of another width'),
    'video length': ('error', 'videos with too many clips'),
    'stream rates': ('error', 'videos whose streams have other rates'),
    'video labels': ('error', 'videos with other numbers of clips and labels'),
    'text missing': ('error', 'queries without a feature file'),
    'text file': ('error', 'query features that cannot be used'),
    'text width': ('error', 'query features of another width'),
    'text rows': ('error', 'query features without a word'),
    'empty split': ('error', 'splits without a usable record'),
    'split file': ('warning', 'splits without their annotation file'),
    'altered file': ('warning', 'files that changed, but not in size and time'),
    'text layout': ('warning', 'data.text_layout does not seem to fit'),
    'clip length': ('warning', 'data.clip_length does not seem to fit'),
    'clip count': ('warning', f'videos with over {CLIP_TOLERANCE} clips more or fewer than their '
                   'duration says'),
    'stream lengths': ('warning', f'videos whose streams differ by over {CLIP_TOLERANCE} clips'),
    'cut clips': ('warning', 'videos that are cut to data.max_clips'),
    'duration': ('warning', 'videos with several durations'),
    **{kind: ('warning', title) for kind, title in annotations.ODDITIES.items()},
    'low grades': ('warning', 'splits with grades below the least that counts as a highlight'),
    'late window': ('warning', 'windows after the last clip of the features'),
    'zero clips': ('warning', 'videos with clips of zeros'),
    'zero words': ('warning', 'queries with words of zeros'),
    'few rows': ('warning', 'queries with fewer rows than words'),
    'many rows': ('warning', 'queries with more rows than letters'),
    'shared video': ('warning', 'videos of the training split that others have too'),
    'shared qid': ('warning', 'qids of two splits: they share one feature file'),
    'cut words': ('note', 'queries that lose words to data.max_tokens'),
    'short window': ('note', 'windows shorter than a clip'),
    'whole video': ('note', 'windows that cover the whole video'),
    'overlap': ('note', 'queries whose windows overlap'),
    'many windows': ('note', 'queries with more windows than data.max_spans'),
    'late grades': ('note', 'graded clips after the last clip of the features'),
    'no windows': ('note', 'records without windows or labels'),
    'repeated query': ('note', 'sentences that a video has twice'),
    'unused file': ('note', 'feature files that no annotation uses'),
    'skipped': ('note', 'records on the skip list'),
}


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is wrong, or worth knowing, with a file or record.

    Attributes:
        kind: of KINDS.
        message: one line that names it.
        records: (split, line) of the records that it concerns.
    """

    kind: str
    message: str
    records: tuple[tuple[str, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class Part:
    """A split as it was read.

    Attributes:
        name: of the split.
        path: of its annotation file.
        qids: line number -> qid, None where it has none; of bad and skipped records, too.
        queries: the good ones.
    """

    name: str
    path: pathlib.Path
    qids: dict[int, int | str | None]
    queries: list[annotations.Query]

    @property
    def n_videos(self) -> int:
        """Number of videos of the queries."""
        return len({query.vid for query in self.queries})


T = TypeVar('T')
Uses = list[tuple[Part, annotations.Query]]  # of a video or query
Streams = dict[str, list[list[pathlib.Path | None]]]  # video -> file of each part of each stream
Texts = dict[int | str, pathlib.Path]  # qid -> file


class Report:
    """Collects problems and numbers.

    Attributes:
        data: the config node.
        parts: the splits that could be read.
        numbers: title -> Counter of a distribution.
        text_rows: place of a row -> mean cosine similarity of these rows across queries.
        inspector: what was found in the feature files.
        seconds: that verifying took.
    """

    def __init__(self, data: ConfigDict, inspector: inspection.Inspector):
        self.data, self.inspector = data, inspector
        self.parts: list[Part] = []
        self.numbers: dict[str, collections.Counter] = {}
        self.text_rows: dict[str, float] = {}
        self.seconds = 0.0
        self._problems: dict[tuple[str, str], list[tuple[str, int]]] = {}

    def add(self, kind: str, message: Any, records: Iterable[tuple[str, int]] = ()) -> None:
        """Notes a problem; what two splits say of one file is one problem."""
        self._problems.setdefault((kind, str(message)), []).extend(records)

    def add_query(self, kind: str, part: Part, query: annotations.Query, message: str) -> None:
        """Notes a problem of a query, by its line."""
        self.add(kind, f'{part.path}:{query.line}: {message}', [(part.name, query.line)])

    def attempt(self, kind: str, records: Sequence[tuple[str, int]], function: Callable[..., T],
                *args: Any) -> T | None:
        """Calls the function; if it raises DataError, notes that as a problem, returns None."""
        try:
            return function(*args)
        except DataError as error:
            self.add(kind, error, records)
            return None

    def problems(self, level: str | None = None) -> list[Problem]:
        """All problems, or those of a level."""
        return [Problem(kind, message, tuple(records))
                for (kind, message), records in self._problems.items()
                if level in (None, KINDS[kind][0])]

    def skip_entries(self) -> list[dict]:
        """What is to be left out: records with an error, and those on the skip list already."""
        reasons = collections.defaultdict(list)
        for problem in self.problems():
            if KINDS[problem.kind][0] == 'error' or problem.kind == 'skipped':
                for place in problem.records:
                    reasons[place].append(problem.message)
        return [dict(split=part.name, qid=qid, line=line, reason='; '.join(found))
                for part in self.parts for line, qid in part.qids.items()
                if (found := reasons.get((part.name, line)))]

    def as_json(self) -> dict:
        """Everything, for `--output`."""
        return dict(
            splits={part.name: dict(file=str(part.path), records=len(part.queries),
                                    videos=part.n_videos) for part in self.parts},
            files=dict(read=self.inspector.read, bytes=self.inspector.bytes,
                       unchanged=self.inspector.unchanged, seconds=round(self.seconds, 2)),
            counts={level: len(self.problems(level)) for level in ('error', 'warning', 'note')},
            numbers={name: dict(sorted(counts.items())) for name, counts in self.numbers.items()},
            text_rows=self.text_rows,
            problems=[dict(level=KINDS[problem.kind][0], **dataclasses.asdict(problem))
                      for problem in self.problems()],
        )

    def __str__(self) -> str:
        lines = [f'{part.name}: {len(part.queries)} records of {part.n_videos} videos, {part.path}'
                 for part in self.parts]
        lines.append(f'{self.inspector.read} feature files read ({self.inspector.bytes / 2**20:.0f}'
                     f' MiB), {self.inspector.unchanged} unchanged since they were verified, '
                     f'{self.seconds:.1f} s')
        if self.inspector.note:
            lines.append(f'findings are not remembered: {self.inspector.note}')
        lines += [f'{name}: {_shorten(counts)}' for name, counts in self.numbers.items() if counts]
        if self.text_rows:
            lines.append('text rows, similarity across queries: ' + ', '.join(
                f'{name} {value:.2f}' for name, value in self.text_rows.items()))
        by_kind = collections.defaultdict(list)
        for problem in self.problems():
            by_kind[problem.kind].append(problem)
        for kind, (level, title) in KINDS.items():
            if found := by_kind[kind]:
                concerned = len({place for problem in found for place in problem.records})
                of_records = f' ({concerned} records)' if concerned > len(found) else ''
                lines += ['', f'{level.upper()} {title}: {len(found)}{of_records}']
                lines += [f'  {problem.message}' for problem in found[:EXAMPLES]]
                lines += [f'  and {len(found) - EXAMPLES} more'] * (len(found) > EXAMPLES)
        return '\n'.join(lines)


def _shorten(counts: collections.Counter) -> str:
    """A distribution in a line: the commonest values in order, and how often there were others."""
    shown = dict(counts.most_common(COMMONEST))
    others = counts.total() - sum(shown.values())
    parts = [f'{value}: {shown[value]}' for value in sorted(shown)]
    return ', '.join(parts + [f'others: {others}'] * (others > 0))


def run(values: Any, config: ConfigDict) -> None:
    """Mode `verify-data`: prints the report and writes what the flags ask for.

    Args:
        values: parsed flags.
        config: whole config.

    Raises:
        UserError: the config or a flag can't be used, or the data have errors, also if all of them
            are on the skip list that was written.
    """
    for name in ('output', 'skip_list'):
        path = getattr(values, name)
        if path and not pathlib.Path(path).parent.is_dir():
            raise UserError(f'--{name}={path}: no such folder')
    report = verify(config, recheck=values.recheck)
    print(report)
    if values.output:
        write_json(values.output, report.as_json())
        print(f'\nwrote {values.output}')
    if errors := report.problems('error'):
        raise DataError(f'errors in the data: {len(errors)}; {_skip(report, values.skip_list)}')
    print(f'\nerrors: 0, warnings: {len(report.problems("warning"))}')


def _skip(report: Report, path: str | None) -> str:
    """Writes the skip list, where there is a path for it, and says what can be done."""
    beyond = {problem.kind for problem in report.problems('error') if not problem.records}
    if beyond:
        return f'records left out do not help against: {", ".join(sorted(beyond))}'
    entries = report.skip_entries()
    if not path:
        return f'--skip_list=FILE lists {len(entries)} records for training to leave out'
    write_jsonl(path, entries)
    return (f'wrote {path}: {len(entries)} records that training leaves out with '
            f'--config.data.skip_list={path}')


def verify(config: ConfigDict, *, recheck: bool = False) -> Report:
    """Verifies the data of a config.

    Args:
        config: whole config.
        recheck: also reads files that seem unchanged since they were verified.

    Raises:
        DataError: a value of the config, or the skip list that it names, can't be used.
    """
    start = time.monotonic()
    data = config.data
    release.check_options(data)
    report = Report(data, inspection.Inspector(data.root, recheck=recheck))
    needed = ('train', config.evaluate.split)
    for name, path in annotations.annotation_files(data).items():
        _read_split(report, name, path, needed=name in needed)
    _compare_splits(report)

    videos, queries = _uses(report.parts, 'vid'), _uses(report.parts, 'qid')
    streams, texts = _find_files(report, videos, queries)
    wanted = [(path, features.VIDEO_KEY) for parts in streams.values()
              for path in itertools.chain(*parts) if path]
    wanted += [(path, data.text_key) for path in texts.values()]
    report.inspector.inspect_all(wanted)
    for path in report.inspector.altered:
        report.add('altered file', path)

    _check_videos(report, videos, streams)
    _check_queries(report, queries, texts)
    _check_usable(report)
    report.seconds = time.monotonic() - start
    return report


def _uses(parts: Iterable[Part], field: str) -> dict[Any, Uses]:
    """Groups the queries of splits by a field."""
    found = collections.defaultdict(list)
    for part in parts:
        for query in part.queries:
            found[getattr(query, field)].append((part, query))
    return found


def _places(uses: Uses) -> list[tuple[str, int]]:
    return [(part.name, query.line) for part, query in uses]


# Annotations


def _read_split(report: Report, name: str, path: pathlib.Path, *, needed: bool) -> None:
    """Reads a split's annotation file and adds it to the report's parts."""
    data = report.data
    if not needed and not path.exists():
        report.add('split file', f'{path}: no such file, split {name!r} (data.annotations)')
        return
    lines = report.attempt('annotation file', (), annotations.annotation_lines, path)
    if lines is None:
        return
    skip = skip_list.read(data.skip_list, name, data.annotations, lines)
    skipped: list[str] = []
    queries = annotations.parse_annotations(lines, path, data, skipped, skip)
    part = Part(name, path, {number: skip_list.qid_of(line) for number, line in lines}, queries)
    report.parts.append(part)
    empty: list[str] = []
    if name == 'train':
        annotations.for_training(queries, path, data, empty)
    for kind, messages in (('record', skipped), ('empty target', empty)):
        for message in messages:
            number = int(message.removeprefix(f'{path}:').partition(':')[0])
            report.add(kind, message, [(name, number)])
    for number, reason in skip.items():
        report.add('skipped', f'{path}:{number}: {reason}', [(name, number)])
    sentences: dict[tuple[str, str], int] = {}
    for query in queries:
        first = sentences.setdefault((query.vid, query.query), query.line)
        if first != query.line:
            report.add_query('repeated query', part, query, f'that of line {first} again')
        if not len(query.windows) and query.label is None:
            report.add_query('no windows', part, query,
                             f'qid {query.qid!r} has no relevant_windows')
        if needed and not saliency.is_annotated(query, data.saliency):
            field = saliency.MODES[data.saliency].field
            report.add_query('unlabelled', part, query, f'qid {query.qid!r} has no {field} '
                             f'(data.saliency {data.saliency!r})')
        _check_windows(report, part, query)
    grades = collections.Counter(
        grade for query in queries if query.clip_scores is not None
        for grade in query.clip_scores.ravel().tolist())
    if grades:
        report.numbers[f'{name}: grades'] = grades
        if max(grades) < saliency.SCORES[1] / 2:
            report.add('low grades', f'{path}: grades up to {max(grades):g}, expected those of a '
                       f'scale from {saliency.SCORES[0]} to {saliency.SCORES[1]}')
    report.numbers[f'{name}: windows of a query'] = collections.Counter(
        len(query.windows) for query in queries)


def _check_windows(report: Report, part: Part, query: annotations.Query) -> None:
    """Notes windows that are valid but worth a look."""
    data = report.data
    for kind, message in query.oddities.items():
        report.add_query(kind, part, query, message)
    windows = query.windows[query.windows[:, 0].argsort()]
    for window in windows:
        length = window[1] - window[0]
        if length < data.clip_length - annotations.END_TOLERANCE:
            report.add_query('short window', part, query,
                             f'{window.tolist()}, clips of {data.clip_length} s')
        if length >= query.duration - annotations.END_TOLERANCE:
            report.add_query('whole video', part, query,
                             f'{window.tolist()} of {query.duration} s')
    if (windows[1:, 0] < windows[:-1, 1]).any():
        report.add_query('overlap', part, query, f'{windows.tolist()}')
    if len(windows) > data.max_spans:
        report.add_query('many windows', part, query,
                         f'{len(windows)}, data.max_spans {data.max_spans}')


def _compare_splits(report: Report) -> None:
    """Looks for qids and videos that splits share; two names of one file are no two splits."""
    for first, second in itertools.combinations(report.parts, 2):
        if first.path == second.path:
            continue
        of_qid = {str(query.qid): query for query in first.queries}
        for query in second.queries:
            if other := of_qid.get(str(query.qid)):
                sentence = 'the same' if other.query == query.query else 'another'
                report.add('shared qid', f'{second.path}:{query.line}: qid {query.qid!r} is also '
                           f'in {first.path}:{other.line}, with {sentence} sentence',
                           [(first.name, other.line), (second.name, query.line)])
        if 'train' not in (first.name, second.name):
            continue
        others = _uses([second], 'vid')
        for vid, uses in _uses([first], 'vid').items():
            if vid in others:
                report.add('shared video', f'{vid}: {len(uses)} records in {first.path}, '
                           f'{len(others[vid])} in {second.path}', _places(uses + others[vid]))


def _check_usable(report: Report) -> None:
    """Adds an error for each split in which no record is left."""
    bad = {place for problem in report.problems('error') for place in problem.records}
    for part in report.parts:
        if all((part.name, query.line) in bad for query in part.queries):
            report.add('empty split', f'{part.path}: none of {len(part.qids)} records can be used')


# Feature files


def _find_files(report: Report, videos: dict[str, Uses], queries: dict[int | str, Uses]
                ) -> tuple[Streams, Texts]:
    """Finds the features of videos, a path or None for each part of each stream, and of queries."""
    data = report.data
    folders = [pathlib.Path(data.root, folder) for folder in (*data.video_dirs, data.text_dir)]
    missing = [folder for folder in folders if not features.is_folder(folder)]
    for folder in missing:
        report.add('folder', f'{folder}: no such folder or HDF5 file (data.root, data.video_dirs, '
                   'data.text_dir)')

    def find(kind, uses, folder, function, *args):
        return (None if folder in missing
                else report.attempt(kind, _places(uses), function, *args))

    streams = {vid: [[find('video missing', uses, folder, features.find_file, folder, (vid + part,))
                      for part in data.video_parts] for folder in folders[:-1]]
               for vid, uses in videos.items()}
    texts = {qid: path for qid, uses in queries.items()
             if (path := find('text missing', uses, folders[-1], release.find_query, data, qid))}
    # Without the other records nobody knows whose the files are.
    if not data.limit and all(len(part.queries) == len(part.qids) for part in report.parts):
        used = {*texts.values()}.union(*itertools.chain(*streams.values()))
        for folder in dict.fromkeys(folders):
            found = [] if folder in missing else report.attempt(
                'folder', (), features.all_files, folder)
            for path in found or ():
                if path not in used:
                    report.add('unused file', path)
    return streams, texts


def _check_videos(report: Report, videos: dict[str, Uses], streams: Streams) -> None:
    """Checks widths, clip counts and lengths, zeros, and windows against the clips."""
    data = report.data
    excess, spread, seconds = collections.Counter(), collections.Counter(), []
    for vid, uses in videos.items():
        places, lengths = _places(uses), []
        for paths, dim in zip(streams[vid], data.video_dims, strict=True):
            if None in paths:
                continue
            parts = [report.inspector.entries[path].finding for path in paths]
            for path, part in zip(paths, parts):
                zeros = part.rows - part.filled + part.zeros
                if part.error:
                    report.add('video file', f'{path}: {part.error}', places)
                elif zeros:
                    report.add('zero clips', f'{path}: {zeros} of {part.rows} clips', places)
            if not any(part.error for part in parts):
                n_rows, width = min(part.rows for part in parts), sum(part.width for part in parts)
                report.attempt('video width', places, release.check_width, paths[0],
                               (n_rows, width), dim, 'data.video_dims')
                lengths.append(n_rows)
        durations = sorted({query.duration for _, query in uses})
        if len(durations) > 1:
            report.add('duration', f'{vid}: {", ".join(map(str, durations))} s', places)
        if len(lengths) < len(data.video_dims):
            continue
        n_clips = min(lengths)
        kept = report.attempt(
            'video length', places, release.kept_clips, vid, n_clips, data.max_clips)
        if kept and kept < n_clips:
            report.add('cut clips', f'{vid}: {n_clips} clips, data.max_clips {kept}', places)
        spread[max(lengths) - n_clips] += 1
        names = [paths[0] for paths in streams[vid]]
        report.attempt('stream rates', places, release.check_lengths, names, lengths)
        if max(lengths) - n_clips > CLIP_TOLERANCE:
            report.add('stream lengths', f'{vid}: {", ".join(map(str, lengths))} clips', places)
        labelled = [len(query.label) for _, query in uses if query.label is not None]
        if labelled:  # clips have no length there, as many as labels are kept
            report.attempt('video labels', places, release.check_labels, streams[vid][0][0], vid,
                           n_clips, labelled[-1])
            excess[n_clips - labelled[-1]] += 1
            continue
        expected = durations[-1] / data.clip_length
        seconds.append(durations[-1] / n_clips)
        excess[round(n_clips - expected)] += 1
        if abs(n_clips - expected) > CLIP_TOLERANCE:
            report.add('clip count', f'{vid}: {n_clips} clips, expected about {expected:.1f}: '
                       f'{durations[-1]} s of {data.clip_length} s each', places)
        for part, query in uses:
            _check_clips(report, part, query, n_clips)
    report.numbers['clips more than durations or labels say'] = excess
    if len(data.video_dims) > 1:
        report.numbers['clips that streams of a video differ by'] = spread
    if seconds:
        median = float(np.median(seconds))
        if abs(median / data.clip_length - 1) > CLIP_LENGTH_TOLERANCE:
            report.add('clip length', f'clips last {median:.3f} s in the median video (duration / '
                       f'clips), data.clip_length is {data.clip_length}')


def _check_clips(report: Report, part: Part, query: annotations.Query, n_clips: int) -> None:
    """Compares a query with the clips that its video's features have."""
    end = n_clips * report.data.clip_length
    late = query.windows[query.windows[:, 0] >= end]
    if len(late):
        report.add_query('late window', part, query,
                         f'{late[0].tolist()}, the {n_clips} clips end at {end}')
    if (query.clip_ids >= n_clips).any():
        report.add_query('late grades', part, query, f'clip {query.clip_ids.max()} of {n_clips}')


def _check_queries(report: Report, queries: dict[int | str, Uses], texts: Texts) -> None:
    """Checks widths, zeros, rows against words, and the layout of the rows."""
    data = report.data
    layout = tokens.TEXT_LAYOUTS[data.text_layout]
    surplus, lengths, sample = collections.Counter(), collections.Counter(), {}
    for qid, path in texts.items():
        places, found = _places(queries[qid]), report.inspector.entries[path].finding
        if found.error:
            report.add('text file', f'{path}: {found.error}', places)
            continue
        report.attempt('text width', places, release.check_width, path, (found.rows, found.width),
                       data.text_dim, 'data.text_dim')
        filled = found.filled if layout.padded else found.rows
        n_rows = report.attempt('text rows', places, _word_rows, path, filled, data)
        if n_rows is None:
            continue
        if found.zeros and layout.padded:  # else a word without a vector
            report.add('zero words', f'{path}: {found.zeros} of {found.filled} rows', places)
        query = queries[qid][0][1].query
        words = [word for word in query.split() if any(map(str.isalnum, word))]
        surplus[n_rows - len(words)] += 1
        lengths[filled] += 1
        said = f'{path}: {n_rows} rows for words ({filled} in all), {len(words)} words: {query!r}'
        if n_rows < len(words):
            report.add('few rows', said, places)
        if n_rows > len(''.join(query.split()).encode()):
            report.add('many rows', said, places)
        n_tokens = filled + (not layout.has_eos)  # and their mean
        if n_tokens > data.max_tokens:
            report.add('cut words', f'{path}: {n_tokens} tokens, data.max_tokens '
                       f'{data.max_tokens}', places)
        if words and found.filled and found.width == data.text_dim:
            # Equal sentences, and equal beginnings of them, have equal rows for good reasons.
            sample.setdefault(words[0].lower(), path)
    report.numbers['rows more than words'] = surplus
    if len(lengths) == 1 and len(surplus) > 2:
        report.add('text layout', f'all {surplus.total()} queries have {next(iter(lengths))} rows '
                   'that are not zeros, whatever their words: rows after [EOS] must be zeros')
    _check_layout(report, list(sample.values())[:SAMPLE])


def _word_rows(path: pathlib.Path, n_rows: int, data: ConfigDict) -> int:
    with release.naming_layout(data, path):
        return tokens.word_rows(n_rows, tokens.TEXT_LAYOUTS[data.text_layout])


def _check_layout(report: Report, paths: Sequence[pathlib.Path]) -> None:
    """Compares the rows of queries that begin differently: those before the words are the same."""
    if len(paths) < 2:
        return
    first, last = report.inspector.remember(
        'text rows', paths, lambda: _row_similarity(paths, report.data))
    report.text_rows = {f'row {i}': value for i, value in enumerate(first)} | {'last row': last}
    name = report.data.text_layout
    layout = tokens.TEXT_LAYOUTS[name]
    same = next((i for i, value in enumerate(first) if value < SAME), len(first))
    if same != layout.start:
        fitting = [key for key, other in tokens.TEXT_LAYOUTS.items() if other.start == same]
        report.add('text layout', f'{same} first rows are the same in {len(paths)} queries, '
                   f'{name!r} has {layout.start} before the words'
                   + f', {" and ".join(map(repr, fitting))} {same}' * bool(fitting))
    if layout.has_eos and last >= SAME:
        report.add('text layout', f'the last row is the same in {len(paths)} queries, {name!r} '
                   'says that it is [EOS], which tells sentences apart')


def _row_similarity(paths: Sequence[pathlib.Path], data: ConfigDict) -> tuple[list[float], float]:
    """Compares text rows at the same place across queries.

    Args:
        paths: two or more text feature files.
        data: the config node.

    Returns:
        Mean cosine similarity over pairs of files of row 0, 1, ..., and of the last rows before
        padding.
    """
    queries = []
    for path in paths:
        rows = features.read_features(path, data.text_key)
        queries.append(tokens.unit_rows(rows[:tokens.filled_rows(rows)]))
    n_rows = min(SAMPLE_ROWS, min(map(len, queries)))

    def similarity(vectors):
        n = len(vectors)
        total = np.square(np.sum(vectors, axis=0, dtype=np.float64)).sum()
        return round(float((total - np.square(vectors).sum()) / (n * (n - 1))), 4)

    first = [similarity([rows[i] for rows in queries]) for i in range(n_rows)]
    return first, similarity([rows[-1] for rows in queries])
