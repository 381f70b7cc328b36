"""What Prometheus is told."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

SECONDS = (.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of one service."""

    def __init__(self):
        self.registry = CollectorRegistry()
        own = dict(namespace='dualground', registry=self.registry)
        ProcessCollector(registry=self.registry)
        self.requests = Counter('requests', 'answers', ('method', 'route', 'status'), **own)
        self.seconds = Histogram('request_seconds', 'from request to answer', ('route',),
                                 buckets=SECONDS, **own)
        self.batches = Histogram('batch_queries', 'sentences that were answered together',
                                 buckets=(1, 2, 4, 8, 16), **own)
        self.device_seconds = Counter('device_seconds', 'spent computing', ('work',), **own)
        self.jobs = Counter('jobs', 'videos, by how they ended', ('state',), **own)
        self.encoded_seconds = Counter('encoded_video_seconds', 'of encoded videos', **own)
        self._own = own

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Adds a gauge that is read when Prometheus asks."""
        Gauge(name, text, **self._own).set_function(value)

    def text(self) -> bytes:
        """All of it in Prometheus' format."""
        return generate_latest(self.registry)
