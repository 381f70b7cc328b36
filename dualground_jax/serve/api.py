"""The HTTP service: its routes. `guard` stands before them, `openapi` documents them."""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import pathlib
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Collection
from concurrent.futures import Future
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

import dualground_jax
from data_pipelines.errors import DataError, UserError, one_line
from dualground_jax.grounding import ground, moment_files
from dualground_jax.metrics.moments import MAX_WINDOWS
from dualground_jax.serve import openapi, reading
from dualground_jax.serve.device import Full
from dualground_jax.serve.guard import Guard, failure
from dualground_jax.serve.limits import Limits
from dualground_jax.serve.service import Answer, Service, check_sentence
from dualground_jax.serve.store import Busy, Video

LOG = logging.getLogger('dualground.serve')
PAGE = pathlib.Path(__file__).with_name('static')
BODY = 64 * 1024  # bytes of JSON at most
SLOWEST = 10_000  # bytes a second of an upload
PAGE_TYPES = {'.html': 'text/html; charset=utf-8', '.css': 'text/css; charset=utf-8',
              '.js': 'text/javascript; charset=utf-8', '.svg': 'image/svg+xml'}
# Format of a query's answer -> media type and text of rows.
FORMATS: dict[str, tuple[str, Callable[[list[dict]], str]]] = {
    'csv': ('text/csv', moment_files.to_csv),
    'ffconcat': ('text/plain', lambda rows: moment_files.to_ffconcat(rows, absolute=False)),
    'edl': ('text/plain', moment_files.to_edl)}


class Refused(HTTPException):
    """An answer of one line."""

    def __init__(self, status: int, text: str, retry: float = 0):
        super().__init__(status, text, {'retry-after': f'{max(retry, 1):.0f}'} if retry else None)


def make(service: Service, hosts: Collection[str] = ()) -> ASGIApp:
    """The application.

    Args:
        service: that it serves, started; it is stopped with the application.
        hosts: names that requests may call it by; none: any.
    """
    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        LOG.info('stopping')
        await run_in_threadpool(service.stop)
        LOG.info('stopped')

    own = _Api(service)
    page = [Route(f'/{path.name}', own.page) for path in PAGE.iterdir()
            if path.suffix in PAGE_TYPES]
    app = Starlette(lifespan=lifespan, routes=[
        Route('/', own.page), *page, Route('/healthz', own.health), Route('/metrics', own.metrics),
        Route('/openapi.json', own.document), Route('/v1', own.about),
        Route('/v1/samples', own.samples), Route('/v1/videos', own.videos),
        Route('/v1/videos', own.add, methods=['POST']), Route('/v1/videos/{id}', own.video),
        Route('/v1/videos/{id}', own.delete, methods=['DELETE']),
        Route('/v1/videos/{id}/cancel', own.cancel, methods=['POST']),
        Route('/v1/videos/{id}/content', own.content),
        Route('/v1/videos/{id}/queries', own.ask, methods=['POST']),
    ], exception_handlers={
        HTTPException: lambda _, error: failure(error.status_code, error.detail, error.headers),
        UserError: _on_user_error, OSError: _on_os_error})
    return Guard(app, service, hosts)


def _on_user_error(_: Request, error: Exception) -> Response:
    status = {Full: 503, Busy: 409}.get(type(error), 422)
    return failure(status, str(error), {'retry-after': '1'} if status == 503 else None)


def _on_os_error(_: Request, error: Exception) -> Response:
    LOG.error('disk', extra=dict(error=one_line(error)))
    return failure(507, f'the disk of the service: {error.strerror or one_line(error)}')


class _Api:
    """What answers; a method for each route."""

    def __init__(self, service: Service):
        self.service = service

    @property
    def limits(self) -> Limits:
        return self.service.limits

    async def page(self, request: Request) -> Response:
        path = PAGE / (request.scope['path'].rpartition('/')[2] or 'index.html')
        return FileResponse(path, media_type=PAGE_TYPES[path.suffix])

    async def health(self, _: Request) -> Response:
        return JSONResponse(dict(status='ok'))

    async def metrics(self, _: Request) -> Response:
        return Response(self.service.metrics.text(), media_type='text/plain; version=0.0.4')

    async def document(self, _: Request) -> Response:
        return JSONResponse(openapi.document(self.limits))

    async def about(self, _: Request) -> Response:
        service, limits = self.service, self.limits
        return JSONResponse(dict(
            version=dualground_jax.__version__, model=service.title,
            clip_length=service.clip_length, upload_bytes=limits.upload_bytes,
            video_seconds=limits.video_seconds, sentences=limits.sentences,
            sentence_length=limits.sentence_length, samples=bool(service.videos)))

    async def samples(self, _: Request) -> Response:
        return JSONResponse(dict(samples=await run_in_threadpool(self._samples)))

    def _samples(self) -> list[dict]:
        if not self.service.videos:
            return []
        found = []
        for name in sorted(os.listdir(self.service.videos)):
            with contextlib.suppress(OSError, ValueError):  # no video, or a name that is no text
                path = self._allowed(name)
                _media_type(path)
                found.append(dict(
                    path=name.encode().decode(), bytes=path.stat().st_size,
                    sentences=self.service.sentences.get(pathlib.Path(name).stem, [])))
        return found

    async def videos(self, _: Request) -> Response:
        known = list(self.service.store.videos.values())
        return JSONResponse(dict(videos=[self.service.describe(video) for video in known[::-1]]))

    async def video(self, request: Request) -> Response:
        return JSONResponse(self.service.describe(self._find(request)))

    async def add(self, request: Request) -> Response:
        kind = request.headers.get('content-type', '').partition(';')[0].strip().lower()
        if kind != 'application/json' and kind != 'application/octet-stream' and (
                not kind.startswith('video/')):
            raise Refused(415, f'content type {kind or "none"}, expected video/*, '
                          'application/octet-stream, or application/json with a path')
        self.service.jobs.check_room()
        if kind == 'application/json':
            body = await self._body(request, dict(path=str))
            video, upload = await run_in_threadpool(self._choose, body['path']), None
        else:
            video, upload = await self._receive(request)
        try:
            found = await run_in_threadpool(self.service.store.add, video, upload)
        finally:
            if upload:
                upload.unlink(missing_ok=True)
        if found is video:
            self.service.jobs.submit(video)
            LOG.info('added', extra=dict(video=video.id, bytes=video.bytes))
        return JSONResponse(self.service.describe(found), 202 if found is video else 200)

    def _choose(self, name: str) -> Video:
        """A video of the allowed folder."""
        try:
            path = self._allowed(name)
            kind = _media_type(path)
            with open(path, 'rb') as file:
                digest = hashlib.file_digest(file, 'sha256')
        except (OSError, ValueError):
            raise Refused(404, 'no such sample') from None
        return Video(_id(digest), _clean(name), kind, path.stat().st_size, source=str(path))

    def _allowed(self, name: str) -> pathlib.Path:
        """A file in the allowed folder, where links end; ValueError if it is not there."""
        if not self.service.videos:
            raise ValueError
        folder = pathlib.Path(self.service.videos).resolve()
        path = (folder / name).resolve()
        if not (path.is_relative_to(folder) and path.is_file()):
            raise ValueError
        return path

    async def _receive(self, request: Request) -> tuple[Video, pathlib.Path]:
        """An upload, in the store's folder."""
        service, most = self.service, self.limits.upload_bytes
        too_large = Refused(413, f'the upload has more than {most / 1e6:g} MB, the limit')
        length = request.headers.get('content-length', '')
        if length.isdecimal() and int(length) > most:
            raise too_large
        if service.uploads >= self.limits.uploads:
            raise Refused(503, f'{service.uploads} uploads run, expected at most '
                          f'{self.limits.uploads}', retry=2)
        name = _clean(request.query_params.get('name', ''))
        service.uploads += 1
        handle, path = tempfile.mkstemp('.part', '.', service.store.folder)
        path, size, digest, head, kind = pathlib.Path(path), 0, hashlib.sha256(), b'', ''
        chunks, started = request.stream(), time.monotonic()
        try:
            with open(handle, 'wb') as file:
                while True:
                    try:
                        chunk = await asyncio.wait_for(anext(chunks), self.limits.timeout)
                    except StopAsyncIteration:
                        break
                    size += len(chunk)
                    seconds = time.monotonic() - started
                    if seconds > self.limits.timeout and size < seconds * SLOWEST:
                        raise TimeoutError
                    if size > most:
                        raise too_large
                    if not kind:
                        head += chunk[:reading.HEAD]
                        if len(head) >= reading.HEAD:
                            kind = reading.media_type(head)
                    digest.update(chunk)
                    await run_in_threadpool(file.write, chunk)
            kind = kind or reading.media_type(head)
        except BaseException as error:
            path.unlink(missing_ok=True)
            if isinstance(error, TimeoutError):
                raise Refused(408, f'the upload stalled for {self.limits.timeout:g} s, or '
                              f'came slower than {SLOWEST} bytes a second') from None
            if isinstance(error, DataError):
                raise Refused(415, str(error)) from None
            raise
        finally:
            service.uploads -= 1
        return Video(_id(digest), name, kind, size), path

    async def delete(self, request: Request) -> Response:
        await run_in_threadpool(self.service.store.remove, self._find(request).id)
        return Response(status_code=204)

    async def cancel(self, request: Request) -> Response:
        video = self._find(request)
        if not await run_in_threadpool(self.service.jobs.cancel, video):
            raise Busy(f'the video is {video.state}, expected queued or encoding')
        return JSONResponse(self.service.describe(video))

    async def content(self, request: Request) -> Response:
        video = self._find(request)
        path = self.service.store.path(video)
        if not path.is_file():
            raise Refused(404, 'the video is not here any more')
        return FileResponse(path, media_type=video.media_type, headers={
            'content-security-policy': "sandbox; default-src 'none'",
            'cache-control': 'private, max-age=3600'})

    async def ask(self, request: Request) -> Response:
        video, limits = self._find(request), self.limits
        body = await self._body(request, dict(queries=list), dict(top=int, attention=bool,
                                                                 format=str))
        queries, top = body['queries'], body.get('top', MAX_WINDOWS)
        form, attention = body.get('format', 'json'), body.get('attention', False)
        if not 1 <= len(queries) <= limits.sentences:
            raise DataError(f'{len(queries)} queries, expected 1 to {limits.sentences}')
        for query in queries:
            check_sentence(query, limits)
        if not 1 <= top <= MAX_WINDOWS:
            raise DataError(f'top is {top}, expected 1 to {MAX_WINDOWS}')
        if form != 'json' and form not in FORMATS:
            raise DataError(f'format {form!r}, expected one of json, {", ".join(FORMATS)}')
        rate = video.facts.frame_rate if video.facts else 0
        if form == 'edl' and not rate:
            raise DataError('an EDL needs a video that says its frame rate')
        encoded = await run_in_threadpool(self.service.store.load, video)  # can it be asked?
        answers = await self._wait(self.service.device.ask(video, queries))

        def rows() -> list[dict]:
            return [self._row(video, *pair, encoded.duration, top, attention and form == 'json')
                    for pair in zip(queries, answers, strict=True)]

        found = await run_in_threadpool(rows)
        if form == 'json':
            return JSONResponse(dict(id=video.id, results=found))
        kind, text = FORMATS[form]
        return Response(text(found), media_type=kind, headers={
            'content-disposition': f'attachment; filename="moments.{form}"'})

    def _row(self, video: Video, query: str, answer: Answer, duration: float, top: int,
             attention: bool) -> dict:
        row = ground.make_row(self.service.title, video.name, query, answer.moments, duration,
                              self.service.clip_length, top)
        row['frame_rate'] = video.facts.frame_rate if video.facts else 0
        return row | (self.service.attention(answer, query) if attention else {})

    async def _wait(self, futures: list[Future]) -> list[Answer]:
        """Their results; those that nobody waits for any more are cancelled."""
        try:
            return await asyncio.wait_for(
                asyncio.gather(*map(asyncio.wrap_future, futures)), self.limits.timeout)
        except TimeoutError:
            raise Refused(504, f'no answer in {self.limits.timeout:g} s', retry=5) from None
        except asyncio.CancelledError:
            if asyncio.current_task().cancelling():
                raise
            raise Refused(503, 'the service stops', retry=5) from None
        finally:
            for future in futures:
                future.cancel()

    def _find(self, request: Request) -> Video:
        video = self.service.store.find(request.path_params['id'])
        if video is None:
            raise Refused(404, 'no such video')
        return video

    async def _body(self, request: Request, needed: dict[str, type],
                    optional: dict[str, type] | None = None) -> dict[str, Any]:
        """The request's JSON object, with fields of these types alone."""
        if request.headers.get('content-type', '').partition(';')[0] != 'application/json':
            raise Refused(415, 'expected content type application/json')
        text = b''
        try:
            async with asyncio.timeout(self.limits.timeout):
                async for chunk in request.stream():
                    text += chunk
                    if len(text) > BODY:
                        raise Refused(413, f'more than {BODY} bytes of JSON')
            body = json.loads(text)
        except TimeoutError:
            raise Refused(408, f'the request stalled for {self.limits.timeout:g} s') from None
        except (ValueError, RecursionError) as error:
            raise Refused(400, f'no JSON: {one_line(error)[:100]}') from None
        known = needed | (optional or {})
        if not isinstance(body, dict):
            raise DataError(f'expected a JSON object with {", ".join(known)}')
        for name, value in body.items():
            if type(value) is not known.get(name):
                raise DataError(f'unknown field {name[:40]!r}, known are {", ".join(known)}'
                                if name not in known else
                                f'{name} is {json.dumps(value)[:40]}, expected '
                                f'{known[name].__name__}')
        for name in needed:
            if name not in body:
                raise DataError(f'{name} is missing')
        return body


def _id(digest: Any) -> str:
    return digest.hexdigest()[:32]


def _clean(name: str) -> str:
    """A file's name for people and cut lists: no folders, no marks that control anything."""
    kept = ''.join(c for c in name.replace('\\', '/').rpartition('/')[2] if c.isprintable())
    return kept.strip()[:100] or 'video'


def _media_type(path: pathlib.Path) -> str:
    with open(path, 'rb') as file:
        return reading.media_type(file.read(reading.HEAD))
