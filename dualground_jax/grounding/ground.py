"""Mode `predict`: from a checkpoint to the moments of sentences in videos, or of a split."""

import json
import pathlib
from collections.abc import Sequence

from absl.flags import FlagValues
from ml_collections import ConfigDict

from data_pipelines import features, progress, recipe, release, video
from data_pipelines.errors import ConfigError, DataError
from dualground_jax import predict, pretrained
from dualground_jax.grounding import moment_files
from dualground_jax.grounding.encoded import EncodedVideo, known_encoder
from dualground_jax.grounding.predictor import Moments, Predictor, check_sentences


def run(values: FlagValues, config: ConfigDict) -> None:
    """Predicts as the flags say: of sentences in videos, or of a split.

    Prints a line of JSON for each video and query, or writes them to --output.

    Args:
        values: parsed flags: workdir; video or video_features, query or query_features, encoder,
            output, top, save_plot.
        config: that of the checkpoint, or one of the same model.

    Raises:
        ConfigError: a flag is missing, or a file to write cannot be written.
        DataError: videos or features that are not as they should be. Of several videos the others
            are done first.
    """
    if not (values.video or values.video_features):
        predict.predict_best(config, values.workdir, predict.load_split(config))
        return
    check_sentences(values.query)
    if (values.video or values.query) and not (values.encoder or known_encoder(
            pretrained.config_of(values.workdir).data.recipe, values.workdir)):
        raise ConfigError('--video and --query need --encoder=clip=FOLDER, the encoder that made '
                          "the features of the model's training")
    names = values.query or [values.query_features]
    rates = [video.probe(path).frame_rate for path in values.video]
    outputs = values.output.split(',') if values.output else []
    for path in outputs:
        moment_files.check(path, rates, values.top * len(names) * len(rates))
    predictor = Predictor.from_checkpoint(values.workdir, config, values.encoder)
    if values.query:
        predictor.require_encoder().encode_text(values.query)  # can it?
    queries = values.query or [features.read_features(path, predictor.config.data.text_key)
                               for path in names]
    rows, failed = [], []
    for number, path in enumerate(values.video or values.video_features[:1]):
        try:
            encoded = predictor.encode_video(path) if values.video else _read_features(
                values.video_features, predictor.config)
            found = predictor.predict(encoded, queries)
        except DataError as error:
            if len(values.video) < 2:
                raise
            progress.say(f'error: {error}')
            failed.append(str(error))
            continue
        for name, moments in zip(names, found, strict=True):
            row = make_row(values.workdir, path, name, moments, encoded.duration,
                           predictor.config.data.clip_length, values.top)
            if rates:
                row['frame_rate'] = rates[number]
            if values.save_plot:
                _draw(row, pathlib.Path(values.save_plot), len(rows) + 1)
            if not outputs:
                print(json.dumps(row), flush=True)
            rows.append(row)
    for path in outputs:
        moment_files.write(path, rows)
        progress.say(f'wrote {path}: {len(rows)} videos and queries')
    if failed:
        raise DataError(f'{len(failed)} of {len(values.video)} videos failed, the first: '
                        f'{failed[0]}')


def _read_features(paths: Sequence[str], config: ConfigDict) -> EncodedVideo:
    """The streams of a video in feature files: one each, or one for each of data.video_parts."""
    data, made = config.data, recipe.of_files(paths)
    predict.check_recipe(data.recipe, config.evaluate, made, paths[0])
    parts = [features.read_features(path, features.VIDEO_KEY) for path in paths]
    count = len(data.video_parts)
    streams = [release.join_parts(parts[i : i + count]) for i in range(0, len(parts), count)]
    return EncodedVideo(streams, min(map(len, streams)) * data.clip_length, made)


def make_row(model: str, path: str, query: str, moments: Moments, duration: float,
             clip_length: float, top: int) -> dict:
    """What is told of a query in a video, see `moment_files`."""
    told = lambda values: values.astype(float).round(4).tolist()
    return dict(
        model=model, video=path, query=query, duration=duration, clip_length=clip_length,
        windows=told(moments.windows[:top]), saliency=told(moments.saliency),
        relevance=told(moments.relevance))


def _draw(row: dict, folder: pathlib.Path, number: int) -> None:
    from dualground_jax import plots  # imports matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    path = pathlib.Path(row['video'])
    plots.save(plots.grounding_figure(dict(
        row, vid=path.name, windows=[], labels=None, predictions=row['windows'],
    )), folder / f'{path.stem}_{number}.png')
