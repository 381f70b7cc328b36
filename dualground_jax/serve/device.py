"""The one thread that computes: batches of waiting sentences, in between pictures of videos."""

import collections
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from data_pipelines.errors import UserError
from dualground_jax.serve.metrics import Metrics

T = TypeVar('T')


class Full(UserError):
    """There is no room for more work now."""


class Device:
    """Runs what others ask for, in one thread.

    Args:
        answer: videos and sentences of equal number -> what is found of each.
        batch: sentences that are answered together at most.
        queue: sentences that may wait at most.
        metrics: counters.
    """

    def __init__(self, answer: Callable[[Sequence[Any], Sequence[str]], Sequence[Any]],
                 batch: int, queue: int, metrics: Metrics):
        self._answer, self._batch, self._queue, self._metrics = answer, batch, queue, metrics
        self._queries: collections.deque[tuple[Any, str, Future]] = collections.deque()
        self._calls: collections.deque[tuple[Callable, tuple, Future]] = collections.deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name='device', daemon=True)
        self._thread.start()

    def waiting(self) -> int:
        """Sentences that wait."""
        return len(self._queries)

    def ask(self, video: Any, sentences: Sequence[str]) -> list[Future]:
        """Asks for sentences in a video; a cancelled future is left out.

        Raises:
            Full: the queue has no room for all of them.
        """
        with self._changed:
            if len(self._queries) + len(sentences) > self._queue or self._stopped:
                raise Full(f'{len(self._queries)} sentences wait, expected at most {self._queue}')
            found = [Future() for _ in sentences]
            self._queries.extend((video, *pair) for pair in zip(sentences, found, strict=True))
            self._changed.notify()
        return found

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """What a function returns that computes; waits for it."""
        future: Future[T] = Future()
        with self._changed:
            if self._stopped:
                raise Full('the service stops')
            self._calls.append((function, arguments, future))
            self._changed.notify()
        return future.result()

    def stop(self) -> None:
        """Ends the thread; what waits is cancelled."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()
        for *_, future in (*self._queries, *self._calls):
            future.cancel()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queries or self._calls or self._stopped)
                if self._stopped:
                    return
                count = min(len(self._queries), self._batch)
                queries = [self._queries.popleft() for _ in range(count)]
                calls = [self._calls.popleft()] if self._calls else []
            started = time.monotonic()
            self._answer_all([query for query in queries
                              if query[-1].set_running_or_notify_cancel()])
            answered = time.monotonic()
            for function, arguments, future in calls:
                if future.set_running_or_notify_cancel():
                    _fulfil(future, lambda f=function, a=arguments: f(*a))
            self._metrics.device_seconds.labels('queries').inc(answered - started)
            self._metrics.device_seconds.labels('videos').inc(time.monotonic() - answered)

    def _answer_all(self, queries: list[tuple[Any, str, Future]]) -> None:
        if not queries:
            return
        videos, sentences, futures = zip(*queries)
        try:
            found = self._answer(videos, sentences)
        except Exception as error:  # of any kind: the others go on
            if len(queries) == 1:
                futures[0].set_exception(error)
            else:  # of one of them
                for query in queries:
                    self._answer_all([query])
            return
        self._metrics.batches.observe(len(queries))
        for future, answer in zip(futures, found, strict=True):
            future.set_result(answer)


def _fulfil(future: Future, make: Callable[[], Any]) -> None:
    try:
        future.set_result(make())
    except Exception as error:  # goes to whoever waits
        future.set_exception(error)
