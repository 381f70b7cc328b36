"""The document of the API, OpenAPI 3.1."""

from typing import Any

import dualground_jax
from dualground_jax.metrics.moments import MAX_WINDOWS
from dualground_jax.serve.limits import Limits

NUMBER, WHOLE, TEXT, SWITCH = (
    dict(type=kind) for kind in ('number', 'integer', 'string', 'boolean'))


def _list(of: dict, **more: Any) -> dict:
    return dict(type='array', items=of, **more)


def _object(fields: dict[str, dict], *optional: str) -> dict:
    needed = [name for name in fields if name not in optional]
    return dict(type='object', properties=fields, required=needed, additionalProperties=False)


def _ref(name: str) -> dict:
    return {'$ref': f'#/components/schemas/{name}'}


def _body(schema: dict, text: str = 'The answer.', kind: str = 'application/json') -> dict:
    return dict(description=text, content={kind: dict(schema=schema)})


ERRORS = {
    400: 'No JSON.', 401: 'The token is missing or wrong.', 403: 'A page of another origin asks.',
    404: 'There is no such video or sample.', 405: 'The address has no such method.',
    408: 'The upload or request stalled.',
    409: "The video's state does not allow it, or the store has no room.",
    413: 'The upload or the JSON is too large.', 415: 'No video, or another content type.',
    416: 'There is no such range of bytes.', 421: 'Another host name is meant.',
    422: 'A field is not as expected.',
    429: 'Too many requests a second; see Retry-After.', 503: 'Too many wait; see Retry-After.',
    504: 'No answer in time.', 507: 'The disk is full.'}
SERIES = _list(NUMBER, description='A number a clip.')
# The models' attention is no share of anything: it tells clips apart, not words.
ATTENTION = _list(NUMBER, description='A number of 0 or more a clip, of no fixed scale.')
VIDEO = _object(dict(
    id=dict(TEXT, description="The start of the SHA-256 of the file's bytes."), name=TEXT,
    state=dict(enum=['queued', 'encoding', 'ready', 'failed', 'cancelled']), bytes=WHOLE,
    media_type=TEXT, content=dict(TEXT, description='Relative address of the video.'),
    duration=dict(NUMBER, description='Seconds.'), frame_rate=NUMBER, width=WHOLE, height=WHOLE,
    error=dict(TEXT, description='Why it failed.'),
    progress=dict(NUMBER, minimum=0, maximum=1), seconds_left=dict(NUMBER, minimum=0),
    ahead=dict(WHOLE, description='Videos that are encoded before it.'),
), 'duration', 'frame_rate', 'width', 'height', 'error', 'progress', 'seconds_left', 'ahead')
RESULT = _object(dict(
    model=TEXT, video=TEXT, query=TEXT, duration=NUMBER, clip_length=NUMBER, frame_rate=NUMBER,
    windows=_list(_list(NUMBER, minItems=3, maxItems=3),
                  description='Start and end in seconds and a score, best first.'),
    saliency=SERIES, relevance=dict(SERIES, description='Saliency from 0 to 1 in this video.'),
    words=_list(_object(dict(text=TEXT, attention=dict(ATTENTION, type=['array', 'null'])))),
    phrases=_list(_object(dict(shares=_list(NUMBER, description='A number a word.'),
                               attention=ATTENTION))),
    sentence=dict(ATTENTION, type=['array', 'null']),
), 'words', 'phrases', 'sentence')


def document(limits: Limits) -> dict[str, Any]:
    """The document of a service with these limits."""
    def operation(text: str, answers: dict, *errors: int, **more: Any) -> dict:
        known = {str(code): _body(_ref('Error'), ERRORS[code])
                 for code in sorted({405, 421, *errors})}
        return dict(summary=text, responses={str(code): answer for code, answer in answers.items()}
                    | known, **more)

    def guarded(text: str, answers: dict, *errors: int, **more: Any) -> dict:
        return operation(text, answers, 401, 429, *errors, security=[{}, dict(token=[])], **more)

    which = dict(parameters=[dict(name='id', required=True, schema=TEXT, **{'in': 'path'})])
    video, upload = _body(_ref('Video')), dict(schema=dict(TEXT, format='binary'))
    query = _object(dict(
        queries=_list(dict(TEXT, minLength=1, maxLength=limits.sentence_length), minItems=1,
                      maxItems=limits.sentences),
        top=dict(WHOLE, minimum=1, maximum=MAX_WINDOWS, default=MAX_WINDOWS),
        attention=dict(SWITCH, default=False, description='Also words, phrases and sentence.'),
        format=dict(enum=['json', 'csv', 'ffconcat', 'edl'], default='json'),
    ), 'top', 'attention', 'format')
    samples = _object(dict(samples=_list(_object(dict(
        path=TEXT, bytes=WHOLE, sentences=_list(TEXT))))))
    about = _object(dict(
        version=TEXT, model=TEXT, clip_length=NUMBER, upload_bytes=WHOLE, video_seconds=NUMBER,
        sentences=WHOLE, sentence_length=WHOLE, samples=SWITCH))
    return dict(
        openapi='3.1.0',
        info=dict(title='dualground_jax', version=dualground_jax.__version__,
                  description='Moments of sentences in videos.'),
        paths={
            '/healthz': dict(get=operation('Whether it serves.', {200: _body(
                _object(dict(status=TEXT)))})),
            '/metrics': dict(get=operation('Counters for Prometheus.', {200: _body(
                TEXT, kind='text/plain')}, 401, 429)),
            '/openapi.json': dict(get=operation('This document.', {200: _body(
                dict(type='object'))})),
            '/v1': dict(get=guarded('The model and the limits.', {200: _body(about)})),
            '/v1/samples': dict(get=guarded('Videos of the allowed folder.', {
                200: _body(samples)})),
            '/v1/videos': dict(
                get=guarded('All videos, the last used one first.', {200: _body(
                    _object(dict(videos=_list(_ref('Video')))))}),
                post=guarded(
                    'Uploads a video, or takes one of the allowed folder, and encodes it.',
                    {200: dict(video, description='It was here already.'),
                     202: dict(video, description='It will be encoded.')},
                    400, 403, 404, 408, 409, 413, 415, 422, 503, 507,
                    parameters=[dict(name='name', schema=TEXT, **{'in': 'query'},
                                     description='For people; no path.')],
                    requestBody=dict(required=True, content={
                        'application/octet-stream': upload, 'video/*': upload,
                        'application/json': dict(schema=_object(dict(path=TEXT)))}))),
            '/v1/videos/{id}': dict(
                get=guarded('State and progress of a video.', {200: video}, 404, **which),
                delete=guarded('Deletes a video; cancels it if it is on its way.', {
                    204: dict(description='It is gone.')}, 403, 404, **which)),
            '/v1/videos/{id}/cancel': dict(post=guarded(
                'Cancels a video that is queued or encoding.', {200: video}, 403, 404, 409,
                **which)),
            '/v1/videos/{id}/content': dict(get=guarded(
                'The video itself, in ranges; ?key= in place of the token.',
                {code: _body(dict(TEXT, format='binary'), kind='video/*') for code in (200, 206)},
                404, 416, **which)),
            '/v1/videos/{id}/queries': dict(post=guarded(
                'Finds the moments of sentences.',
                {200: dict(description='Moments, in the format asked for.', content={
                    'application/json': dict(schema=_object(dict(
                        id=TEXT, results=_list(_ref('Result'))))),
                    'text/csv': dict(schema=TEXT), 'text/plain': dict(schema=TEXT)})},
                400, 403, 404, 408, 409, 413, 415, 422, 503, 504,
                requestBody=dict(required=True, content={'application/json': dict(schema=query)}),
                **which)),
        },
        components=dict(
            schemas=dict(Video=VIDEO, Result=RESULT, Error=_object(dict(error=TEXT))),
            securitySchemes=dict(token=dict(type='http', scheme='bearer'))))
