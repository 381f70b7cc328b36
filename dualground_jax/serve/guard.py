"""What stands before the HTTP service: who may ask, how often; headers, metrics and the log."""

import dataclasses
import hmac
import json
import logging
import time
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dualground_jax.serve.service import Service

LOG = logging.getLogger('dualground.serve')
OPEN = ('/', '/healthz', '/openapi.json')  # and the page's files: these need no token
HEADERS = {
    'content-security-policy': "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; media-src 'self' blob:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    'x-content-type-options': 'nosniff', 'referrer-policy': 'no-referrer',
    'cross-origin-resource-policy': 'same-origin', 'cross-origin-opener-policy': 'same-origin',
    'cache-control': 'no-cache', 'permissions-policy': 'camera=(), microphone=(), geolocation=()'}


def failure(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    """An answer in JSON that says what is wrong."""
    return JSONResponse(dict(error=text), status, headers)


@dataclasses.dataclass
class _Bucket:
    """Requests that a client may make; fills with time."""

    left: float
    at: float


class Guard:
    """Stands before the application: who may ask, how often; headers, metrics and a line of log."""

    def __init__(self, app: ASGIApp, service: Service, hosts: Collection[str]):
        self._app, self._service, self._hosts = app, service, hosts
        self._buckets: dict[str, _Bucket] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] != 'http':
            await self._app(scope, receive, send)
            return
        request, started = Request(scope), time.monotonic()
        status, told = 500, b''

        async def guarded(message: Message) -> None:
            nonlocal status, told
            if message['type'] == 'http.response.start':
                status = message['status']
                headers = HEADERS | {name.decode('latin-1').lower(): value.decode('latin-1')
                                     for name, value in message['headers']}
                if status >= 400 and headers.get('content-type') != 'application/json':
                    # Of the framework, in plain text.
                    reason = 'no such range of bytes' if status == 416 else 'the service failed'
                    told = json.dumps(dict(error=reason)).encode()
                    headers |= {'content-type': 'application/json',
                                'content-length': str(len(told))}
                if status >= 400 and scope['method'] == 'POST':
                    headers['connection'] = 'close'  # its body may not have been read
                message = message | dict(headers=[
                    (name.encode('latin-1'), value.encode('latin-1'))
                    for name, value in headers.items()])
            elif told:
                message = dict(type='http.response.body', body=told)
            await send(message)

        try:
            if refused := self._refusal(request):
                await refused(scope, receive, guarded)
            else:
                await self._app(scope, receive, guarded)
        except ClientDisconnect:
            status = 499
        finally:
            route = scope.get('route')
            path = route.path if route else 'none'
            seconds = time.monotonic() - started
            metrics = self._service.metrics
            method = scope['method'] if route and scope['method'] in route.methods else 'any'
            metrics.requests.labels(method, path, status).inc()
            metrics.seconds.labels(path).observe(seconds)
            if path.startswith('/v1') or status >= 400:
                LOG.info('request', extra=dict(
                    method=scope['method'], route=path, status=status,
                    client=request.client.host if request.client else '',
                    milliseconds=round(seconds * 1000, 1)))

    def _refusal(self, request: Request) -> Response | None:
        """Why the request is refused before anybody looks at it."""
        path, headers = request.scope['path'], request.headers
        if self._hosts and _host(headers.get('host', '')) not in self._hosts:
            return failure(421, 'unknown host name')
        origin = headers.get('origin')
        if origin and request.method not in ('GET', 'HEAD') and (
                origin.partition('//')[2] != headers.get('host')):
            return failure(403, 'asked for by a page of another origin')
        if path.startswith(('/v1', '/metrics')) and (wait := self._wait(request)):
            return failure(429, f'more than {self._service.limits.rate:g} requests a second, the '
                          'limit', {'retry-after': f'{max(wait, 1):.0f}'})
        if path in OPEN or not path.startswith(('/v1', '/metrics')) or self._is_known(request):
            return None
        return failure(401, 'expected the header Authorization: Bearer TOKEN',
                      {'www-authenticate': 'Bearer'})

    def _is_known(self, request: Request) -> bool:
        token = self._service.token
        if not token:
            return True
        given = request.headers.get('authorization', '').encode()
        if hmac.compare_digest(given, f'Bearer {token}'.encode()):
            return True
        _, _, videos, key, *rest = (*request.scope['path'].split('/'), '', '', '')
        return videos == 'videos' and rest[:1] == ['content'] and request.method == 'GET' and (
            hmac.compare_digest(request.query_params.get('key', '').encode(),
                                self._service.key(key).encode()))

    def _wait(self, request: Request) -> float:
        """Seconds until the client may ask again; 0: now."""
        rate = self._service.limits.rate
        if not rate:
            return 0
        now, client = time.monotonic(), request.client.host if request.client else ''
        if len(self._buckets) > 10_000:
            self._buckets = {name: bucket for name, bucket in self._buckets.items()
                             if bucket.left + (now - bucket.at) * rate < 2 * rate}
        bucket = self._buckets.setdefault(client, _Bucket(2 * rate, now))
        bucket.left = min(bucket.left + (now - bucket.at) * rate, 2 * rate)
        bucket.at = now
        if bucket.left < 1:
            return (1 - bucket.left) / rate
        bucket.left -= 1
        return 0


def _host(header: str) -> str:
    """The name in a Host header, without the port; '' if there is none."""
    try:
        return urlsplit(f'//{header}').hostname or ''
    except ValueError:
        return ''
