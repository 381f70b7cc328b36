"""All that answers need: a predictor that shares batches, videos, jobs, limits."""

import dataclasses
import hmac
import logging
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines import files, schedule
from data_pipelines.errors import DataError
from dualground_jax.grounding.encoded import EncodedVideo
from dualground_jax.grounding.predictor import Moments, Predictor, make_steps
from dualground_jax.serve import jobs, reading, words
from dualground_jax.serve.device import Device
from dualground_jax.serve.limits import Limits
from dualground_jax.serve.metrics import Metrics
from dualground_jax.serve.store import QUEUED, READY, Store, Video

LOG = logging.getLogger('dualground.serve')
SIZES = 1, 4, 16  # of batches: each is a program, compiled before the first request
TEXT_BATCH = 8  # sentences that CLIP reads together: its 32 take long for one


@dataclasses.dataclass
class Answer:
    """What is found of a sentence in a video.

    Attributes:
        moments: where it is.
        observed: of `words.observe`.
    """

    moments: Moments
    observed: dict


class Service:
    """A predictor at work for many.

    Args:
        predictor: with an encoder, or one that knows its own.
        folder: of the store.
        limits: what it takes.
        token: that clients must send; '': none.
        videos: folder of videos that may be chosen; '': none. Its `annotations.jsonl`, if there is
          one, has sentences for them.
        title: what the model is called.
    """

    def __init__(self, predictor: Predictor, folder: str, limits: Limits, token: str = '',
                 videos: str = '', title: str = ''):
        self.limits, self.token, self.videos, self.title = limits, token, videos, title
        self.sentences = suggested(videos)
        encoder = predictor.require_encoder()
        encoder.encode_text([])  # can it?
        self.predictor = shared(predictor)
        self.metrics = metrics = Metrics()
        self.store = Store(folder, limits.store_bytes, encoder.recipe)
        self.device = Device(self._answer, SIZES[-1], limits.queue, metrics)
        self.jobs: jobs.Jobs | None = None
        self.uploads = 0
        metrics.watch('waiting_queries', 'sentences that wait', self.device.waiting)
        metrics.watch('waiting_videos', 'videos that wait', lambda: len(self.jobs.waiting()))
        metrics.watch('videos', 'that are known', lambda: len(self.store.videos))
        metrics.watch('store_bytes', 'of videos and features', self.store.bytes)

    @property
    def clip_length(self) -> float:
        """Seconds."""
        return self.predictor.config.data.clip_length

    def start(self) -> None:
        """Compiles every program, then goes on with the videos that the last run has left."""
        self.device.call(self._warm_up)
        limits = self.limits
        self.jobs = jobs.Jobs(
            self.store, self.predictor.encoder, self.device, self.metrics, count=limits.decoders,
            waiting=limits.queue, bounds=reading.Bounds(
                limits.video_seconds, self.clip_length, limits.timeout))
        LOG.info('ready', extra=dict(videos=len(self.store.videos)))

    def stop(self) -> None:
        """Finishes running jobs, and ends."""
        self.jobs.stop(self.limits.grace)
        self.device.stop()
        self.store.close()

    def _warm_up(self) -> None:
        encoder, data = self.predictor.encoder, self.predictor.config.data
        for stream in encoder.streams:
            stream.encode(np.zeros((1, *stream.shape), np.uint8))

        def run(clips: int, count: int) -> None:
            rows = [np.ones((clips, width), np.float32) for width in data.video_dims]
            video = EncodedVideo(rows, clips * data.clip_length, encoder.recipe)
            started = time.monotonic()
            self.predictor.predict_pairs([video] * count, [''] * count)  # known to all
            LOG.info('compiled', extra=dict(clips=clips, sentences=count,
                                            seconds=round(time.monotonic() - started, 3)))

        for size in SIZES:
            run(1, size)
            stretches = size if size > 1 else SIZES[-1] + 1  # the last one is alone in a batch
            run(data.max_clips + (stretches - 1) * max(data.max_clips // 2, 1), 1)

    def _answer(self, videos: Sequence[Video], sentences: Sequence[str]) -> list[Answer]:
        encoded = [self.store.load(video) for video in videos]
        return [Answer(*found) for found in self.predictor.predict_pairs(encoded, sentences)]

    def attention(self, answer: Answer, sentence: str) -> dict[str, Any]:
        """Of words and phrases, see `words.tell`."""
        tokenizer = self.predictor.encoder.clip.tokenizer
        return words.tell(answer.observed, tokenizer.words(sentence), len(answer.moments.saliency),
                          self.predictor.config.data.max_clips)

    def describe(self, video: Video) -> dict[str, Any]:
        """What the API says of a video."""
        facts, now = video.facts, time.monotonic()
        found = dict(
            id=video.id, name=video.name, state=video.state, bytes=video.bytes,
            media_type=video.media_type, content=f'v1/videos/{video.id}/content')
        if self.token:
            found['content'] += f'?key={self.key(video.id)}'
        if facts:
            found |= dict(duration=facts.duration, frame_rate=facts.frame_rate,
                          width=facts.width, height=facts.height)
        if video.error:
            found['error'] = video.error
        if video.state == READY:
            found['progress'] = 1.0
        elif video.total:
            found['progress'] = min(video.done / video.total, 1)
        left = jobs.seconds_left(video, now)
        if left is not None:
            found['seconds_left'] = round(left, 1)
        if video.state == QUEUED:
            ids = [other.id for other in self.jobs.waiting()]
            found['ahead'] = ids.index(video.id) if video.id in ids else 0
        return found

    def key(self, name: str) -> str:
        """What lets a player, which cannot send the token, read one video."""
        return hmac.new(self.token.encode(), name.encode(), 'sha256').hexdigest()


def shared(predictor: Predictor) -> Predictor:
    """A predictor with one size of clips and tokens for all, which observes attention."""
    config, mesh = predictor.config.copy_and_resolve_references(), predictor.mesh
    encoder = predictor.require_encoder()
    text = dataclasses.replace(encoder.clip, batch_size=TEXT_BATCH)
    with config.unlocked():
        config.evaluate.batch_size = SIZES[-1]
    predict_step, stretch_step = make_steps(config, mesh, words.observe)
    return dataclasses.replace(
        predictor, config=config, encoder=dataclasses.replace(encoder, clip=text),
        predict_step=predict_step, stretch_step=stretch_step, sizes=SIZES,
        bucket=schedule.Bucket(*schedule.limits(config.data)))


def suggested(videos: str) -> dict[str, list[str]]:
    """Sentences of the videos in a folder, by their names less the endings.

    Raises:
        DataError: a line of the folder's annotations that is none.
    """
    path, found = pathlib.Path(videos, 'annotations.jsonl'), {}
    for record in files.load_jsonl(path) if videos and path.exists() else ():
        found.setdefault(str(record.get('vid')), []).append(str(record.get('query')))
    return found


def check_sentence(sentence: Any, limits: Limits) -> None:
    """Raises DataError if it is no sentence that is answered."""
    if not isinstance(sentence, str) or not sentence.strip():
        raise DataError('a query is empty, expected a sentence')
    if len(sentence) > limits.sentence_length:
        raise DataError(f'a query of {len(sentence)} characters, expected at most '
                        f'{limits.sentence_length}')
    try:
        sentence.encode()
    except UnicodeEncodeError:
        raise DataError('a query has half a character in it, expected text') from None
