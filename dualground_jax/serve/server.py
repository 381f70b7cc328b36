"""Mode `serve`: reads the flags, loads the model, runs the server until SIGTERM or SIGINT."""

import asyncio
import contextlib
import json
import logging
import os
import pathlib
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn
from absl.flags import FlagValues
from ml_collections import ConfigDict
from uvicorn.protocols.http.h11_impl import H11Protocol

from data_pipelines import progress
from data_pipelines.errors import ConfigError, one_line
from dualground_jax import demo, runtime
from dualground_jax.grounding.encoded import known_encoder
from dualground_jax.grounding.predictor import Predictor
from dualground_jax.serve import api
from dualground_jax.serve.limits import Limits
from dualground_jax.serve.service import Service

LOG = logging.getLogger('dualground.serve')
LOOPBACK = {'localhost', '127.0.0.1', '::1'}
HEADER_SECONDS = 20.0  # from a connection, or the start of a request, to the end of its headers
KEEP_ALIVE = 20  # seconds between two requests of a connection
CONNECTIONS = 2000  # at the same time
FULL = (b'HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 5\r\n'
        b'connection: close\r\n\r\n{"error": "too many connections"}')


def run(values: FlagValues, config: ConfigDict) -> None:
    """Serves until it is stopped.

    Args:
        values: parsed flags, those of `serve`.
        config: that of the checkpoint.

    Raises:
        ConfigError: a flag names what is not there, the port is taken, or there is no encoder.
        DataError: an encoder that can't read sentences, or by another recipe than the model's.
    """
    if not values.encoder and not known_encoder(config.data.recipe, values.workdir):
        raise ConfigError('--mode=serve needs --encoder=clip=FOLDER, the encoder that made the '
                          "features of the model's training")
    token = read_token(values.token_file)
    is_demo = os.path.realpath(values.workdir) == os.path.realpath(demo.MODEL)
    videos = values.videos or str(demo.VIDEOS) * is_demo
    if videos and not os.path.isdir(videos):
        raise ConfigError(f'--videos={values.videos}: no such folder')
    place = bind(values.host, values.port)
    hosts = set() if token else LOOPBACK | {values.host.lower()}
    if values.host in ('0.0.0.0', '::'):
        hosts = set()
        if not token:
            progress.say(f'--host={values.host} without --token_file: whoever reaches this machine '
                         'may use it')
    limits = Limits.of(values, values.decoders or len(os.sched_getaffinity(0)))
    folder = values.output or os.path.join(
        runtime.user_cache() if is_demo else values.workdir, 'served')
    with ends_at_once():
        predictor = Predictor.from_checkpoint(values.workdir, config, values.encoder)
        title = 'demo model, knows drawn scenes alone' if is_demo else predictor.config.model.name
        service = Service(predictor, folder, limits, token, videos, title)
        log_json()
        progress.silence()
        service.start()
    serve(api.make(service, hosts), values.host, place, limits.grace)


def read_token(path: str | None) -> str:
    """The token in a file; '' if there is none.

    Raises:
        ConfigError: it can't be read, or holds no token.
    """
    if not path:
        return ''
    try:
        token = pathlib.Path(path).read_text(encoding='utf-8').strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--token_file={path}: can't be read: {one_line(error)}") from error
    if len(token) < 16 or not token.isascii() or len(token.split()) != 1:
        raise ConfigError(f'--token_file={path}: expected one word of 16 or more plain characters')
    return token


def bind(host: str, port: int) -> socket.socket:
    """The address to serve at, where connections wait until the server runs.

    It listens at once, else another service could bind it too.

    Raises:
        ConfigError: it can't be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM)[0]
        place = socket.socket(family, kind, protocol)  # asyncio sends at once over TCP that says so
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind(address)
        place.listen()
    except OSError as error:
        raise ConfigError(f'--host={host} --port={port}: {error.strerror}') from error
    return place


@contextlib.contextmanager
def ends_at_once() -> Iterator[None]:
    """Has SIGTERM and SIGINT end the process, whatever its threads do.

    Nothing that could be lost is in work yet, and an orderly end would wait for a thread that
    compiles, or crash it. Handlers alone are late: the main thread runs them, which does not wake
    up where another thread got the signal. They stay afterwards; uvicorn puts its own before them.
    """
    stops = signal.SIGTERM, signal.SIGINT
    for stop in stops:
        signal.signal(stop, lambda *_: os._exit(0))
    came, told = os.pipe()
    os.set_blocking(told, False)

    def wait() -> None:
        while number := os.read(came, 1):
            if number[0] in stops:
                os._exit(0)
        os.close(came)

    threading.Thread(target=wait, name='signals', daemon=True).start()
    signal.set_wakeup_fd(told)
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        os.close(told)


def serve(app: Any, host: str, place: socket.socket, grace: float) -> None:
    """Runs the application; returns when it was stopped by a signal."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    port = place.getsockname()[1]
    server = Server(uvicorn.Config(
        app, host, port, http=Protocol, ws='none', loop='asyncio',
        lifespan='on', log_config=None, access_log=False, server_header=False,
        proxy_headers=False, timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=max(int(grace), 1)))
    server.run([place])


class Server(uvicorn.Server):
    """Tells where it serves once it does; uvicorn is silent about sockets that it did not make."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host = f'[{self.config.host}]' if ':' in self.config.host else self.config.host
        LOG.info('serving', extra=dict(address=f'http://{host}:{self.config.port}'))


class Protocol(H11Protocol):
    """Closes a connection whose request does not come, or that is one too many; errors are JSON."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._patience = None
        # Half of the files that may be open are left to videos and their processes.
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if len(self.connections) > min(CONNECTIONS, files // 2):
            transport.write(FULL)
            transport.close()
        else:
            self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._patience:
            self._patience.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        super().send_400_response(json.dumps(dict(error=msg)))

    def _wait_for_headers(self) -> None:
        """Starts or ends the wait for the rest of a request's headers."""
        open_request = self.cycle is not None and not self.cycle.response_complete
        if open_request and self._patience:
            self._patience.cancel()
            self._patience = None
        elif not open_request and not self._patience:
            self._patience = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _give_up(self) -> None:
        self._patience = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


def log_json() -> None:
    """Sends the service's log and uvicorn's to stderr, an object of JSON a line."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Json())
    for name, level in (('dualground.serve', logging.INFO), ('uvicorn', logging.INFO)):
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
        log.setLevel(level)


_PLAIN = set(vars(logging.makeLogRecord({}))) | {'message', 'color_message'}


class _Json(logging.Formatter):
    """A record as JSON: time, level, event and what else was told."""

    default_msec_format = '%s.%03d'

    def format(self, record: logging.LogRecord) -> str:
        told = {key: value for key, value in vars(record).items() if key not in _PLAIN}
        if record.exc_info:
            told['trace'] = self.formatException(record.exc_info)
        return json.dumps(dict(time=self.formatTime(record), level=record.levelname.lower(),
                               event=record.getMessage()) | told, default=str)
