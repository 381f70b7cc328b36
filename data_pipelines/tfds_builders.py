"""The data sets of `datasets.DATASETS` as `tensorflow_datasets` builders.

    tfds build qvhighlights/sf_clip_float16 --imports=data_pipelines.tfds_builders \\
        --manual_dir=data/qvhighlights --data_dir=data/records
    python -m dualground_jax.main --mode=build --config=configs/qvh.py:features=sf_clip \\
        --config.data.dtype=float16 --config.data.records=data/records

The second reads the same folder, but with whatever the config says of it. Both write one file after
another, or, with a runner of Apache Beam, as many at the same time as it has workers. No worker
holds more than one file's features. See docs/records.md.
"""

import collections
import dataclasses
import functools
import hashlib
import math
import pathlib
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from data_pipelines import annotations, built, datasets, release
from data_pipelines import beam as beam_lib
from data_pipelines.errors import ConfigError, DataError

SHARD_BYTES = 256e6  # of features in one file, at most



def _citation(key: str) -> str:
    """An entry of citations.bib."""
    entries = pathlib.Path(__file__).with_name('citations.bib').read_text().strip().split('\n\n')
    return next(entry for entry in entries if f'{{{key},' in entry)


# What the info of a data set says of it.
CARDS = {
    'qvhighlights': dict(
        description='QVHighlights: 2-second clips of YouTube videos, with moments and graded '
                    'highlights of free-form queries.',
        homepage='https://github.com/jayleicn/moment_detr',
        license='Annotations CC BY-NC-SA 4.0', citation=_citation('lei2021qvhighlights')),
    'charades_sta': dict(
        description='Charades-STA: moments of sentences in videos of daily activities at home.',
        homepage='https://github.com/jiyanggao/TALL',
        license='Non-commercial research (Charades)', citation=_citation('gao2017tall')),
    'tacos': dict(
        description='TACoS: moments of sentences in long videos of cooking.',
        homepage='https://www.coli.uni-saarland.de/projects/smile/tacos',
        license='Research', citation=_citation('regneri2013tacos')),
    'tvsum': dict(
        description='TVSum: 50 videos of 10 topics, each 2-second clip graded by 20 annotators.',
        homepage='https://github.com/yalesong/tvsum',
        license='CC BY', citation=_citation('song2015tvsum')),
    'youtube_highlights': dict(
        description='YouTube Highlights: highlights of videos of six domains.',
        homepage='https://github.com/aliensunmin/DomainSpecificHighlight',
        license='Research', citation=_citation('sun2014youtube')),
}


@dataclasses.dataclass(eq=False, kw_only=True)
class Config(tfds.core.BuilderConfig):
    """A feature release in a dtype.

    Attributes:
        features: key of datasets.FEATURES, with the data set's name.
        dtype: of the features.
        data: the config node that says how to read the files; None: the defaults of the
            release, with tfds' `manual_dir` for root.
    """

    features: str
    dtype: str
    data: Any = None


class Grounding(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Builds one data set.

    Its split `videos` has each video once; the other splits have queries, and in `video_place` the
    number of their video. A query's `annotation` is its line of the annotation file, byte for byte,
    from which `datasets` makes its record; fields parsed from it lie beside it. In queries `video`
    is empty, in videos all else. `metadata.json` holds the settings, and of each split its
    annotation file with size and checksum, messages of the queries that were skipped (`left_out`),
    the lines on data.skip_list (`skipped`), and `statistics`.
    """

    VERSION = tfds.core.Version(built.VERSION)
    RELEASE_NOTES = {built.VERSION: 'First release.'}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        'The folder holds the official annotation files and a folder for each feature stream, as '
        'docs/datasets.md of dualground_jax lists them.')

    def __init__(self, *, file_format: Any = None, **kwargs):
        known = tfds.core.FileFormat.ARRAY_RECORD
        if file_format and tfds.core.FileFormat.from_value(file_format) != known:
            raise ConfigError(f'file_format={file_format}: only {known.value} has random access')
        super().__init__(file_format=known, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self, features=_features_of(self._data()), disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
            **CARDS.get(self.name, dict(description=self.name)))

    def _data(self, manual_dir: Any = '') -> types.SimpleNamespace:
        """How to read the files, as a plain object that can be sent to other processes."""
        config = self.builder_config
        found = config.data.to_dict() if config.data else datasets.defaults(
            self.name, config.features) | dict(root=str(manual_dir), dtype=config.dtype)
        return types.SimpleNamespace(**found | dict(records='', cache_gb=0))

    def _example_writer(self) -> tfds.core.writer.ExampleWriter:
        return Writer(tfds.core.FileFormat.ARRAY_RECORD)

    def _download_and_prepare(self, dl_manager, download_config) -> None:
        options = download_config.beam_options
        if options and not download_config.beam_runner:
            # tfds asks for a runner by name; on the command line it is one of the options.
            runner = options.get_all_options()['runner'] or 'DirectRunner'
            download_config = dataclasses.replace(download_config, beam_runner=runner)
        infos = []
        for split, files in self._files_of_splits(dl_manager).items():
            # One after another: tfds would keep Beam's pipeline, and run earlier splits again.
            self._files = {split: files}
            super()._download_and_prepare(dl_manager, download_config)
            infos += self.info.splits.values()
        self.info.set_splits(tfds.core.splits.SplitDict(infos))
        for split in self.info.metadata['splits'].values():
            split.update(statistics(built.open_split(self.info, split['stored_as'])))

    def _shard_iterators_per_split(self, dl_manager) -> Mapping[str, Sequence[Callable]]:
        return self._files

    def _files_of_splits(self, dl_manager) -> Mapping[str, Sequence[Callable]]:
        """What makes the records of each file of each split, videos first."""
        data = self._data('' if self.builder_config.data else dl_manager.manual_dir)
        files, stored_as = annotations.annotation_files(data), annotations.first_of_file(data)
        sources, skipped = {}, {}
        for split in dict.fromkeys(stored_as.values()):
            sources[split], skipped[split] = _usable_queries(data, split)
        everything = [query for queries in sources.values() for query in queries]
        vids = list(dict.fromkeys(query.vid for query in everything))
        places = {vid: place for place, vid in enumerate(vids)}
        labelled = annotations.labelled_clips(everything)
        video_bytes = data.max_clips * sum(data.video_dims) * np.dtype(data.dtype).itemsize
        text_bytes = data.max_tokens * data.text_dim * np.dtype(data.dtype).itemsize
        video_chunks = _chunks(vids, video_bytes)
        template = self._get_filename_template(built.VIDEOS)
        video_files = [str(template.sharded_filepath(shard_index=i, num_shards=len(video_chunks)))
                       for i in range(len(video_chunks))]
        found = {built.VIDEOS: [
            functools.partial(_video_examples, data, first, part, [labelled.get(v) for v in part])
            for first, part in video_chunks]}
        for split, queries in sources.items():
            lines = dict(annotations.annotation_lines(files[split]))
            found[split] = [
                functools.partial(
                    _query_examples, data, first,
                    [(query, lines[query.line], places[query.vid]) for query in part],
                    video_files, [len(vids) for _, vids in video_chunks])
                for first, part in _chunks(queries, text_bytes)]
        self.info.metadata.update(
            settings=built.settings_of(data),
            recipe=found_recipe.to_json() if (found_recipe := datasets.recipe_of(data)) else '',
            splits={split: dict(
                stored_as=stored, annotations=pathlib.Path(files[split]).name,
                bytes=files[split].stat().st_size,
                sha256=hashlib.sha256(files[split].read_bytes()).hexdigest(),
                queries=len(sources[stored]), left_out=skipped[stored],
                skipped=list(annotations.split_lines(data, stored)[1]),
            ) for split, stored in stored_as.items()},
            videos=len(vids),
        )
        return found


class Writer(tfds.core.writer.ExampleWriter):
    """Writes records uncompressed: 16-bit features hardly shrink, but unpacking takes time."""

    def write(self, path: Any, examples: Iterable[tuple[Any, bytes]]) -> None:
        from array_record.python import array_record_module

        # Groups of one: a record is read without its neighbours.
        writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1,uncompressed')
        for _, example in examples:
            writer.write(example)
        writer.close()


def _features_of(data: Any) -> tfds.features.FeaturesDict:
    """What a record holds; arrays as their bytes, so that nothing is rounded or unpacked."""
    def array(shape, dtype):
        return tfds.features.Tensor(shape=shape, dtype=dtype, encoding='bytes')

    text, number = tfds.features.Text(), tfds.features.Scalar(np.int64)
    return tfds.features.FeaturesDict(dict(
        vid=text,
        video=array((None, sum(data.video_dims)), np.dtype(data.dtype)),
        video_place=number,
        n_clips=number,
        annotation=text,
        line=number,
        qid=text,
        query=text,
        duration=array((), np.float64),
        windows=array((None, 2), np.float64),
        clip_ids=array((None,), np.int64),
        clip_scores=array((None,), np.float32),  # those of the first of clip_ids, the second, ...
        label=array((None,), np.float32),  # those of the first clip, the second, ...
        domain=text,
        text=array((None, data.text_dim), np.dtype(data.dtype)),
        roles=array((None,), np.int32),
    ))


def _empty_example(data: Any) -> dict[str, Any]:
    """An example without content."""
    return {name: '' if isinstance(feature, tfds.features.Text)
            else np.zeros([n or 0 for n in feature.shape], feature.np_dtype)
            for name, feature in _features_of(data).items()}


def _video_examples(data: Any, first: int, vids: Sequence[str], labelled: Sequence[int | None]
                    ) -> Iterator[tuple[int, dict]]:
    """Reads the videos of a file; `first` is the place of the first one, `labelled` of each how
    many clips have a label, as of `release.read_video`.
    """
    for place, (vid, labels) in enumerate(zip(vids, labelled, strict=True), start=first):
        video = release.read_video(data, vid, labels)
        yield place, _empty_example(data) | dict(
            vid=vid, video=video, video_place=place, n_clips=len(video))


def _query_examples(data: Any, first: int, queries: Sequence[tuple[annotations.Query, bytes, int]],
                    video_files: Sequence[str], video_counts: Sequence[int]
                    ) -> Iterator[tuple[int, dict]]:
    """Reads the queries of a file.

    Args:
        data: the config node.
        first: place of the first one in its split.
        queries: themselves, their lines and the places of their videos.
        video_files: the written files of the videos, which say how many clips they have.
        video_counts: of videos in them.
    """
    videos = built.Shards(built.VIDEOS, video_files, video_counts)
    for place, (query, line, video_place) in enumerate(queries, start=first):
        text, roles = release.read_query(data, query.qid)
        n_clips = built.number(videos[video_place], 'n_clips')
        scores, label = (np.zeros(0, np.float32) if values is None else values.ravel()
                         for values in (query.clip_scores, query.label))
        yield place, _empty_example(data) | dict(
            vid=query.vid, video_place=video_place, n_clips=n_clips, annotation=line,
            line=query.line, qid=str(query.qid), query=query.query, duration=query.duration,
            windows=query.windows, clip_ids=query.clip_ids, clip_scores=scores,
            label=label, domain=query.domain, text=text, roles=roles)


def _usable_queries(data: Any, split: str) -> tuple[list[annotations.Query], list[str]]:
    """The queries to build, and what is skipped with data.on_error = 'skip'.

    That takes reading all files beforehand; otherwise a bad one ends the build when it is reached.
    """
    if data.on_error == 'skip':
        found = datasets.load_split(data, split)
        return found.queries, found.skipped
    files = release.ReleaseSplit(data, split)
    return files.queries(None), files.skipped


def statistics(queries: built.Shards) -> dict[str, Any]:
    """Counts of a split's queries, read back from its files."""
    counts = collections.defaultdict(list)
    for place in range(len(queries)):
        query = queries[place]
        counts['windows'].append(len(built.array(query, 'windows', np.float64, 2)))
        counts['tokens'].append(len(built.array(query, 'roles', np.int32, 1)))
        counts['clips'].append(built.number(query, 'n_clips'))
    return {name: dict(total=sum(found), least=min(found), most=max(found))
            for name, found in counts.items()}


def _chunks(items: Sequence[Any], item_bytes: int) -> list[tuple[int, Sequence[Any]]]:
    """Cuts items into the contents of files: (number of the first, items) of each."""
    size = max(int(SHARD_BYTES / item_bytes), 1)
    count = math.ceil(len(items) / size)
    ends = [len(items) * i // count for i in range(count + 1)]
    return [(start, items[start:end]) for start, end in zip(ends, ends[1:])]


def builder_class(name: str, configs: Sequence[Config], **options) -> type[Grounding]:
    """A data set's builder; `options` such as skip_registration."""
    return types.new_class(
        name.title().replace('_', ''), (Grounding,), options, lambda body: body.update(
            name=name, __module__=__name__, __doc__=f'Builds {name}; see `Grounding`.',
            BUILDER_CONFIGS=list(configs)))


def register() -> None:
    """Makes a builder of each data set that has a feature release of known widths."""
    releases = collections.defaultdict(list)
    for (dataset, version), values in datasets.FEATURES.items():
        if 'video_dims' in values:  # those of the generated world are in its config
            releases[dataset] += [
                Config(name=f'{version}_{dtype}', features=version, dtype=dtype,
                       description=f'{", ".join(values["video_dirs"])} and {values["text_dir"]}')
                for dtype in ('float16', 'float32')]
    for dataset, configs in releases.items():
        found = builder_class(dataset, configs)
        globals()[found.__name__] = found


register()


def build(data: Any, beam: str = '') -> pathlib.Path:
    """Builds the data that a config names, in the folder data.records.

    Args:
        data: the config node.
        beam: options of Apache Beam, as in 'runner=DirectRunner,direct_num_workers=2'; '': none.

    Returns:
        The folder of the built data. If they are there already they are left as they are.

    Raises:
        ConfigError: no data.records; Apache Beam is asked for but not installed.
        DataError: the files are bad, or there are built data with other settings.
    """
    if not data.records:
        raise ConfigError('data.records is empty, expected the folder to write built data to')
    folder = built.folder_of(data)
    if folder.exists():
        built.check_settings(folder, data)
        return folder
    config = Config(name=built.config_name(data), features=data.features, dtype=data.dtype,
                    data=data)
    builder = builder_class(data.dataset, [config], skip_registration=True)(data_dir=data.records)
    try:
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(
            beam_options=beam_lib.options(beam) if beam else None))
    except RuntimeError as error:
        # Beam tells the error of a worker in the text of its own.
        if found := re.search(r'DataError: (.+?)(?= \[while running|$)', str(error), re.M):
            raise DataError(found[1]) from error
        raise
    return folder


def run(values: Any, config: ConfigDict) -> None:
    """Mode `build`: builds the data that the config names and prints what they hold; flag --beam.

    Raises:
        UserError: as `build`.
    """
    print(report(build(config.data, values.beam)))


def report(folder: pathlib.Path) -> str:
    """What was built, as text."""
    metadata = built.read_metadata(folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    lines = [f'{folder}: {metadata["videos"]} videos, {size / 1e9:.3f} GB']
    for split, found in metadata['splits'].items():
        lines.append(
            f'  {split}: {found["queries"]} queries, {found["windows"]["total"]} windows, '
            f'{found["tokens"]["least"]} to {found["tokens"]["most"]} tokens, '
            f'{found["clips"]["least"]} to {found["clips"]["most"]} clips; '
            f'{len(found["left_out"])} skipped')
        lines += [f'    {message}' for message in found['left_out']]
    return '\n'.join(lines)
