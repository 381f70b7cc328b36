"""From videos and sentences, or their features, to moments, from Python; `ground` is the mode."""

import dataclasses
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from scipy.special import expit

from data_pipelines import features, pipeline, progress, recipe, release, tokens
from data_pipelines import video as video_files
from data_pipelines.errors import ConfigError, DataError
from data_pipelines.schedule import Bucket
from dualground_jax import predict, pretrained, runtime, sharding
from dualground_jax.grounding import stretches
from dualground_jax.grounding.encoded import (
    EncodedVideo,
    check_encoder,
    known_encoder,
    load_encoder,
)
from dualground_jax.metrics.moments import MAX_WINDOWS


class Moments(NamedTuple):
    """Where in a video is what a sentence speaks of.

    Attributes:
        windows: float32[K, 3], start and end in seconds and a score, best first.
        saliency: float32[T], the model's score of each clip.
    """

    windows: np.ndarray
    saliency: np.ndarray

    @property
    def relevance(self) -> np.ndarray:
        """The saliency from 0, of the least clip of the video, to 1, of its best: float32[T]."""
        best = self.saliency.max()
        return 1 - (best - self.saliency) / ((best - self.saliency.min()) or 1)


def check_sentences(queries: Sequence[Any]) -> None:
    """Raises DataError if a query is an empty text."""
    if any(isinstance(query, str) and not query.strip() for query in queries):
        raise DataError('a query is empty, expected a sentence')


def unbounded(config: ConfigDict) -> ConfigDict:
    """The config without `evaluate.clip_to`, which is of the data set's videos.

    One that is predicted may be longer, and bounds the windows itself.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.evaluate.clip_to = (0.0, math.inf)
    return config


def make_steps(config: ConfigDict, mesh: Mesh, observe: Callable | None = None
               ) -> tuple[Callable, Callable]:
    """The steps of a Predictor for whole videos and for stretches; see `make_predict_step`."""
    whole, stretch = (predict.make_predict_step(unbounded(config), mesh, observe, suppress=suppress)
                      for suppress in (True, False))
    return whole, stretch


@dataclasses.dataclass(repr=False)
class Predictor:
    """A trained model with its config, ready to ground sentences in videos.

    Example:
        predictor = Predictor.from_checkpoint('runs/qvh')
        windows, saliency = predictor.predict([slowfast, clip], query_rows)

        predictor = Predictor.from_checkpoint('runs/mine', encoder='clip=FOLDER')
        video = predictor.encode_video('beach.mp4')
        windows, saliency = predictor.predict(video, 'a dog runs')

        predictor.save_pretrained('mine')
        predictor = Predictor.from_pretrained('mine', encoder='clip=FOLDER')
    """

    config: ConfigDict
    params: dict
    predict_step: Callable
    stretch_step: Callable
    mesh: Mesh
    encoder: Any = None
    known_encoder: str = ''  # that is loaded when one is needed
    progress: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of its run
    # What batches are padded to, their clips and tokens, and their rows; default: powers of two.
    bucket: Bucket | None = None
    sizes: Sequence[int] = ()

    @classmethod
    def from_checkpoint(
        cls, workdir: str | os.PathLike, config: ConfigDict | None = None,
        encoder: Any = None,
    ) -> 'Predictor':
        """Loads the best checkpoint of a workdir, or a pretrained folder.

        Args:
            workdir: of the run, or the folder.
            config: of the same model; default: that of the checkpoint. `load_config(workdir,
              {'data.max_clips': 160})` is that with another value.
            encoder: of videos and sentences: an `encoders.encoder.Encoder`, or what its `load`
              takes, as in 'clip=FOLDER'. Features need none. Default: that of the features that
              the model was trained on, where the model says where it is.

        Raises:
            CheckpointError: there is none, or the config's model is another one.
            DataError: an encoder that can't be read, or by another recipe than the features that
              the model was trained on.
        """
        saved = pretrained.config_of(workdir)
        config = (config or saved).copy_and_resolve_references()
        with config.unlocked():
            config.data.recipe = saved.data.recipe
        mesh = sharding.one_device()
        if isinstance(encoder, str):
            encoder = load_encoder(encoder, config.data)
        if encoder is not None:
            check_encoder(encoder.recipe, config)
        params, _, told = predict.restore_best(workdir, config, mesh)
        steps = (runtime.Step(step, 'predict') for step in make_steps(config, mesh))
        return cls(config, params, *steps, mesh, encoder,
                   known_encoder(saved.data.recipe, workdir), told)

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike, config: ConfigDict | None = None, encoder: Any = None,
        revision: str | None = None,
    ) -> 'Predictor':
        """Loads what `save_pretrained` or `push_to_hub` wrote.

        Args:
            name: a folder, or 'OWNER/NAME' on the Hugging Face hub.
            config, encoder: as of `from_checkpoint`.
            revision: branch, tag or commit on the hub.

        Raises:
            CheckpointError: there is none, or it is damaged.
            DataError: as `from_checkpoint`.
        """
        return cls.from_checkpoint(pretrained.find(name, revision), config, encoder)

    def save_pretrained(
        self, folder: str | os.PathLike, *, dtype: str = 'float32', encoder: str = '',
        licence: str = '', name: str = '',
    ) -> None:
        """Writes the model as a folder that `from_pretrained` and all modes read, see `pretrained`.

        Args:
            folder: new, or empty.
            dtype: of the parameters in it: 'float32', or 'float16', which halves it and rounds.
            encoder: where users find the encoder, as in 'clip=openai/clip-vit-base-patch32' on the
              hub; a folder here is kept as the path to it from `folder`. It is checked to be that
              of the model's features. Default: the one that the model knows, if it does.
            licence: of the model, an identifier as in 'apache-2.0', for its card.
            name: of the model in its card; default: the folder's.

        Raises:
            ConfigError: a folder that is not empty, or parameters that `dtype` cannot hold.
            DataError: another encoder than that of the model's features.
        """
        pretrained.check_new(folder)
        config = self._naming(encoder or self.known_encoder, folder)
        pretrained.save(folder, config, self.params, self.progress, dtype=dtype, licence=licence,
                        name=name)

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, token: str | None = None,
        revision: str | None = None, dtype: str = 'float32', encoder: str = '', licence: str = '',
    ) -> str:
        """Uploads what `save_pretrained` writes to the Hugging Face hub.

        Args:
            repo_id: 'OWNER/NAME'; made if it is not there.
            private: whether a new one is.
            token: to sign in with; default: that of `hf auth login`.
            revision: branch.
            dtype, encoder, licence: as of `save_pretrained`; the encoder is one of the hub.

        Returns:
            The address of the commit.

        Raises:
            ConfigError: the hub refuses it or can't be reached, or an encoder that is not on it.
        """
        for source in (part.partition('=')[2] for part in filter(None, encoder.split(','))):
            if not pretrained.is_hub_name(source) or os.path.exists(source):
                raise ConfigError(f'encoder {source!r}: expected a model of the Hugging Face hub, '
                                  'which those who load the model can reach')
        with tempfile.TemporaryDirectory() as scratch:
            folder = os.path.join(scratch, 'model')
            config = self._naming(encoder, folder)  # a path of this machine helps nobody
            pretrained.save(folder, config, self.params, self.progress, dtype=dtype,
                            licence=licence, name=repo_id)
            return pretrained.push(folder, repo_id, private=private, token=token, revision=revision)

    def _naming(self, encoder: str, folder: str | os.PathLike) -> ConfigDict:
        """The config, with a recipe that says where encoders are, after a check of new ones."""
        config = self.config.copy_and_resolve_references()
        known = recipe.parse(config.data.recipe)
        if not encoder:
            return config
        if encoder != self.known_encoder:
            found = load_encoder(encoder, config.data).recipe
            check_encoder(found, config)
            known = known or found
        sources = dict(part.split('=') for part in encoder.split(','))
        sources = {name: os.path.relpath(source, folder) if os.path.exists(source) else source
                   for name, source in sources.items()}
        named = lambda stream: stream and dataclasses.replace(
            stream, source=sources[stream.encoder])
        with config.unlocked():
            config.data.recipe = dataclasses.replace(
                known, streams=tuple(map(named, known.streams)), text=named(known.text)).to_json()
        return config

    def encode_video(self, video: str | os.PathLike | Iterable[np.ndarray]) -> EncodedVideo:
        """Encodes a video, once for all sentences; see `Encoder.encode_video`.

        Args:
            video: its file, or a picture uint8[S, S, 3] for each clip.

        Raises:
            ConfigError: there is no encoder.
            DataError: it can't be read as a video.
        """
        streams = self.require_encoder().encode_video(video)
        duration = min(map(len, streams)) * self.config.data.clip_length
        if isinstance(video, str | os.PathLike):
            duration = video_files.probe(video).duration or duration
        return EncodedVideo(streams, duration, self.encoder.recipe)

    def predict(
        self, video: EncodedVideo | str | os.PathLike | np.ndarray | list[np.ndarray],
        query: str | np.ndarray | Sequence[str] | Sequence[np.ndarray],
        duration: float | None = None,
    ) -> Moments | list[Moments]:
        """Finds the moments of a sentence, or of several.

        A video of more than data.max_clips clips is read in stretches of so many, see `stretches`.

        Args:
            video: of `encode_video`, or its file; or its features, float[T, d] of each stream of
              `data.video_dirs`, in that order, raw as in the feature files; one array if there is
              one stream.
            query: a sentence; or its features, float[R, d_t], raw rows of the text encoder in the
              config's text layout; or a list of such.
            duration: of the video in seconds; default: that of the encoded video, or what the clips
              cover.

        Returns:
            The moments, of a list of queries a list. Windows after `duration` are left out.

        Raises:
            ConfigError: a sentence, and there is no encoder.
            DataError: an empty sentence, a wrong number of streams or width, values that are not
              finite, features by another recipe than the model's, or no duration above 0.
        """
        if duration is not None and not 0 < duration < math.inf:
            raise DataError(f'duration is {duration}, expected seconds above 0')
        several = isinstance(query, list | tuple)
        queries = list(query) if several else [query]
        check_sentences(queries)
        if isinstance(video, str | os.PathLike):
            video = self.encode_video(video)
        if not isinstance(video, EncodedVideo):
            video = EncodedVideo(video if isinstance(video, list) else [video], 0.0)
        if duration is not None:
            video = dataclasses.replace(video, duration=duration)
        found = [moments for moments, _ in self.predict_pairs([video] * len(queries), queries)]
        return found if several else found[0]

    def predict_pairs(
        self, videos: Sequence[EncodedVideo], queries: Sequence[str] | Sequence[np.ndarray]
    ) -> list[tuple[Moments, Any]]:
        """Finds the moments of each query in the video at its place; short videos share batches.

        Args:
            videos: n of `encode_video`, the same one as often as wanted.
            queries: n sentences, or n times features, as of `predict`.

        Returns:
            Of each the moments, and what the steps' `observe` says of its stretches, with a first
            axis of them; None where they have none.

        Raises:
            ConfigError, DataError: as `predict`.
        """
        most, found = self.config.data.max_clips, {}
        read = {key: self._read_video(video) for key, video in {id(v): v for v in videos}.items()}
        samples = [pipeline.Sample(clips, *text, duration) for (clips, duration), text in zip(
            (read[id(video)] for video in videos), self._read_queries(list(queries)), strict=True)]
        short = [i for i, sample in enumerate(samples) if len(sample.video) <= most]
        for i, (windows, saliency, *rest) in zip(
                short, self._run(self.predict_step, [samples[i] for i in short]), strict=True):
            moments = _moments(windows, saliency[:len(samples[i].video)])
            found[i] = moments, jax.tree.map(lambda x: x[None], rest[0]) if rest else None
        for key, (clips, duration) in read.items():
            own = [i for i, video in enumerate(videos) if id(video) == key and i not in found]
            if not own:
                continue
            windows, saliency, *rest = self.read_stretches(
                clips, [(samples[i].text, samples[i].roles) for i in own], duration)
            cosines = self._cosines([queries[i] for i in own], videos[own[0]])
            for n, i in enumerate(own):
                weights = None if cosines[n] is None else stretches.best_of_each(
                    cosines[n], stretches.starts(len(clips), most), most)
                moments = self.fuse(windows[n], saliency[n], len(clips), weights)
                found[i] = moments, jax.tree.map(lambda x, n=n: x[n], rest[0]) if rest else None
        return [found[i] for i in range(len(videos))]

    def _read_video(self, video: EncodedVideo) -> tuple[np.ndarray, float]:
        """The clips of a video, as the model reads them, and its duration in seconds."""
        data = self.config.data
        if video.recipe:
            predict.check_recipe(data.recipe, self.config.evaluate, video.recipe, 'video')
        names = [f'video_features[{i}]' for i in range(len(video.streams))]
        clips = release.join_streams(
            data, list(map(features.check_rows, video.streams, names)), names)
        return clips, video.duration or len(clips) * data.clip_length

    def require_encoder(self) -> Any:
        """The encoder, which is loaded if it is not yet; ConfigError if there is none."""
        if self.encoder is None:
            if not self.known_encoder:
                named = recipe.parse(self.config.data.recipe)
                lost = [stream.source for stream in named.streams] if named else []
                raise ConfigError(
                    "videos and sentences need encoder='clip=FOLDER' of Predictor.from_checkpoint "
                    'or from_pretrained' + f'; not found: {", ".join(lost)}' * any(lost))
            found = load_encoder(self.known_encoder, self.config.data)
            check_encoder(found.recipe, self.config)
            self.encoder = found
        return self.encoder

    def _read_queries(self, queries: list[Any]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Text and roles of sentences or features."""
        if queries and _are_sentences(queries):
            names, rows = queries, self.require_encoder().encode_text(queries)
        else:
            names = [f'query_features[{i}]' if len(queries) > 1 else 'query_features'
                     for i in range(len(queries))]
            rows = list(map(features.check_rows, map(np.asarray, queries), names))
        return [release.label_query(self.config.data, own, name)
                for own, name in zip(rows, names)]

    def _cosines(self, sentences: list[Any], video: EncodedVideo) -> Sequence[np.ndarray | None]:
        """Of each sentence and clip, float32[n, T]; None where nothing brings them together."""
        known = [stream.encoder for stream in video.recipe.streams] if video.recipe else []
        if 'clip' not in known or not _are_sentences(sentences):
            return [None] * len(sentences)
        clips = video.streams[known.index('clip')]
        own = self.encoder.encode_sentences(sentences)
        return tokens.unit_rows(own) @ tokens.unit_rows(clips[:min(map(len, video.streams))]).T

    def read_stretches(
        self, clips: np.ndarray, texts: Sequence[tuple[np.ndarray, np.ndarray]], duration: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the model says of each stretch of a long video and each of Q texts.

        Returns:
            (windows float32[Q, N, K, 3], not suppressed, in seconds of the stretch; saliency
            float32[Q, N, data.max_clips]), stretches as `stretches.starts` has them; a third one
            where the step observes.
        """
        most, clip_length = self.config.data.max_clips, self.config.data.clip_length
        first = stretches.starts(len(clips), most)
        left = duration - np.array(first) * clip_length
        left[:-1] = np.minimum(left[:-1], most * clip_length)
        found = self._run(self.stretch_step, [
            pipeline.Sample(clips[start : start + most], *text, max(seconds, 0))
            for text in texts for start, seconds in zip(first, left)])
        return jax.tree.map(
            lambda *rows: np.stack(rows).reshape(len(texts), len(first), *rows[0].shape), *found)

    def fuse(
        self, windows: np.ndarray, saliency: np.ndarray, n_clips: int,
        weights: np.ndarray | None = None,
    ) -> Moments:
        """One answer out of those of a text's stretches, as of `read_stretches`.

        Args:
            windows: float32[N, K, 3].
            saliency: float32[N, data.max_clips].
            n_clips: of the video.
            weights: float[N], how likely stretches hold what is asked for. Default: the sigmoid
              of the saliency of their best clips, which training pushes to 0 where a sentence is
              another video's.
        """
        first = stretches.starts(n_clips, self.config.data.max_clips)
        section = self.config.evaluate
        fused = stretches.fuse(
            windows, np.array(first) * self.config.data.clip_length,
            expit(saliency.max(1).astype(np.float64)) if weights is None else weights,
            threshold=section.nms, kind=section.nms_kind)
        return _moments(fused.astype(np.float32), stretches.average(saliency, first, n_clips))

    def _run(self, step: Callable, samples: Sequence[pipeline.Sample]) -> list[tuple]:
        """What a step says of each sample, evaluate.batch_size of them at a time at most."""
        most = pipeline.power_of_two(self.config.evaluate.batch_size + 1) // 2
        found, starts = [], range(0, len(samples), most)
        for start in starts if len(starts) == 1 else progress.track(starts, 'reading', 'batches'):
            part = samples[start : start + most]
            size = min((size for size in self.sizes if size >= len(part)), default=0)
            batch = pipeline.pad(self.config.data, part, self.bucket, size)
            rows = jax.device_get(step(self.params, batch))
            found += [jax.tree.map(lambda x, i=i: x[i], rows) for i in range(len(part))]
        return found


def _are_sentences(queries: Sequence[Any]) -> bool:
    return all(isinstance(query, str) for query in queries)


def _moments(windows: np.ndarray, saliency: np.ndarray) -> Moments:
    start, end, score = windows.T
    return Moments(windows[(score >= 0) & (start < end)][:MAX_WINDOWS], saliency)
