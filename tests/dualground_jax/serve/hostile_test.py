"""Hostile input: each gets a clear answer, and the service goes on."""

import asyncio
import dataclasses
import json
import re
import select
import socket
import struct
import time
import types
import zlib

import httpx2
import pytest

from data_pipelines.errors import DataError
from dualground_jax.serve import api, guard, reading, server
from tests.dualground_jax.serve.conftest import wait_for
from tests.helpers import decoders, videos

VIDEO = {'content-type': 'video/mp4'}
MP4 = b'\0\0\0\x20ftypisom' + bytes(500)  # a beginning that looks like one


@pytest.fixture(autouse=True)
def alive(client, beach):
    """After each of them a question is answered, and no file is left over."""
    yield
    asked = client.post(f'/v1/videos/{beach}/queries', json=dict(queries=['a dog']))
    assert asked.status_code == 200


@pytest.fixture(name='limited')
def change_limits(running, monkeypatch):
    def change(**values):
        monkeypatch.setattr(running.service, 'limits',
                            dataclasses.replace(running.service.limits, **values))
    return change


def left_over(running):
    return list(running.service.store.folder.glob('.*.part'))


@pytest.mark.parametrize('content', [
    b'', b'garbage' * 1000, b'\x89PNG\r\n\x1a\n' + bytes(600), b'#EXTM3U\nhttp://127.0.0.1/x.ts\n',
    b'PK\x03\x04' + bytes(600), b'\x7fELF' + bytes(600), b'ffconcat version 1.0\nfile /etc/passwd',
    b'<html><script>alert(1)</script>', b'\0' * 4,
], ids=['empty', 'garbage', 'picture', 'playlist', 'archive', 'program', 'list', 'page', 'zeros'])
def test_what_is_no_video_is_refused_by_its_first_bytes(running, client, content):
    answer = client.post('/v1/videos?name=a.mp4', content=content, headers=VIDEO)
    assert answer.status_code == 415
    assert answer.json()['error'].startswith('no video, expected MP4, MOV')
    assert not left_over(running)


def make_audio(path):
    videos.ffmpeg('-f lavfi -i sine=duration=3 -c:a aac', path)


def make_huge(path):
    side = 8400  # black or white

    def chunk(kind, data):
        check = zlib.crc32(kind + data)
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', check)

    path.with_suffix('.png').write_bytes(
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 1, 0, 0, 0, 0))
        + chunk(b'IDAT', zlib.compress(bytes(side * (side // 8 + 1)))) + chunk(b'IEND', b''))
    videos.ffmpeg('-i', path.with_suffix('.png'), '-c copy', path)


def make_endless(path):
    videos.ffmpeg('-f lavfi -i color=s=64x48:r=2:d=1', '-vf setpts=N*1000000/TB',
                  '-fps_mode passthrough', videos.H264, path)


def make_cut(path):
    videos.make(path, 20)
    path.write_bytes(path.read_bytes()[:-4000])


def make_false(path):
    path.write_bytes(MP4)


@pytest.mark.parametrize('ending, make, reason', [
    ('mp4', make_false, "can't be read as a video: "),
    ('mp4', make_cut, "can't be read as a video: "),
    ('mp4', make_audio, 'has no video, found audio'),
    ('mkv', make_huge, 'no frame can be decoded'),
    ('mkv', make_endless, r'\d+.* minutes long, expected at most 180'),
], ids=['false', 'cut', 'audio', 'huge pictures', 'endless'])
def test_videos_that_fail(client, tmp_path, ending, make, reason):
    path = tmp_path / f'video.{ending}'
    make(path)
    assert path.stat().st_size < 2e6
    answer = client.post('/v1/videos', content=path.read_bytes(), headers=VIDEO)
    video = wait_for(client, answer.json()['id'])
    assert video['state'] == 'failed'
    assert re.match(reason, video['error']) and str(tmp_path) not in video['error']
    refused = client.post(f'/v1/videos/{video["id"]}/queries', json=dict(queries=['a dog']))
    assert refused.status_code == 409 and video['error'] in refused.json()['error']
    assert client.get(video['content']).status_code == 404


@pytest.mark.parametrize('decode, patience, reason', [
    (decoders.stuck, 6, 'decoding it gave no picture in 6 s'),
    (decoders.dead, 30, 'decoding it ended its process'),
    (decoders.greedy, 30, 'Unable to allocate'),
    (decoders.endless, 30, 'longer than 0.5 minutes'),
])
def test_decoders_that_misbehave_are_ended(tmp_path, decode, patience, reason):
    path = videos.make(tmp_path / 'video.mp4', 2)
    told, bounds = [], reading.Bounds(30, 2.0, patience)
    with pytest.raises(DataError, match=reason) as error:
        for _ in reading.read(str(path), decode, (32, 32, 3), 8, bounds,
                              told.append):
            pass
    assert told == [reading.Facts(2.0, 10.0, 64, 48, 'h264')]
    assert str(tmp_path) not in str(error.value)


def test_a_decoder_that_computes_for_ever_is_ended(running, client, monkeypatch, tmp_path):
    """Also where its video says that it ends before it begins."""
    encoder = running.service.jobs._encoder
    busy = dataclasses.replace(encoder.streams[0], decode=decoders.busy)
    monkeypatch.setattr(running.service.jobs, '_encoder', dataclasses.replace(
        encoder, streams=(busy,)))
    content = videos.make(tmp_path / 'video.mp4', 2).read_bytes()
    answer = client.post('/v1/videos', content=content + b'\0\0\0\x09free?', headers=VIDEO)
    video = wait_for(client, answer.json()['id'])
    assert video['state'] == 'failed' and video['error'] == 'decoding it ended its process'


def test_computing_is_always_limited(monkeypatch):
    found = []
    monkeypatch.setattr(reading.resource, 'setrlimit', lambda _, limits: found.append(limits[0]))
    for seconds in (-31, 90):
        reading._limit_computing(seconds)
    assert found == [reading.CPU, 90]


def test_an_upload_beyond_the_limit_is_not_read(running, client, limited):
    limited(upload_mb=0.3)
    begin = (b'POST /v1/videos HTTP/1.1\r\nhost: localhost\r\ncontent-type: video/mp4\r\n')
    with socket.create_connection(('127.0.0.1', running.port)) as link:
        link.settimeout(10)
        link.sendall(begin + b'content-length: 10000000000\r\n\r\n')
        answer = link.recv(10**5)
        assert b' 413 ' in answer and b'the upload has more than 0.3 MB, the limit' in answer
        assert link.recv(10) == b''
    with socket.create_connection(('127.0.0.1', running.port)) as link:
        link.settimeout(10)
        link.sendall(begin + b'transfer-encoding: chunked\r\n\r\n')
        sent, chunk = 0, MP4.ljust(65536, b'\0')
        with pytest.raises(OSError):
            while sent < 10**10:
                link.sendall(b'10000\r\n' + chunk + b'\r\n')
                sent += len(chunk)
                time.sleep(0.002)
        assert sent < 2e7  # what buffers between the two hold
    assert not left_over(running)


@pytest.mark.parametrize('pause', [10, 0.1], ids=['stalls', 'trickles'])
def test_an_upload_that_stalls_is_given_up(running, limited, pause):
    limited(timeout=0.3)
    with socket.create_connection(('127.0.0.1', running.port)) as link:
        link.settimeout(10)
        link.sendall(b'POST /v1/videos HTTP/1.1\r\nhost: localhost\r\ncontent-type: video/mp4\r\n'
                     b'content-length: 100000\r\n\r\n' + MP4)
        while not select.select([link], [], [], pause)[0]:
            link.sendall(b'x')
        answer = link.recv(10**5)
        assert b' 408 ' in answer and b'the upload stalled for 0.3 s' in answer
        assert link.recv(10) == b''
    assert not left_over(running)


@pytest.mark.parametrize('sent', [b'', b'GET / HTTP/1.1\r\nhost: loc'], ids=['nothing', 'a part'])
def test_a_client_that_hangs_is_hung_up_on(running, monkeypatch, sent):
    monkeypatch.setattr(server, 'HEADER_SECONDS', 0.2)
    with socket.create_connection(('127.0.0.1', running.port)) as link:
        link.settimeout(10)
        link.sendall(sent)
        assert link.recv(10) == b''


@pytest.mark.parametrize('name, value', [
    ('CONNECTIONS', 0),
    ('resource', types.SimpleNamespace(RLIMIT_NOFILE=0, getrlimit=lambda _: (1, 1))),
], ids=['connections', 'files'])
def test_connections_are_counted(running, monkeypatch, name, value):
    monkeypatch.setattr(server, name, value)
    with socket.create_connection(('127.0.0.1', running.port)) as link:
        link.settimeout(10)
        answer = b''.join(iter(lambda: link.recv(10**5), b''))
    assert answer.startswith(b'HTTP/1.1 503 ') and answer.endswith(b'"too many connections"}')


def test_what_is_no_request_is_told_so(running):
    with socket.create_connection(('127.0.0.1', running.port)) as link:
        link.sendall(b'\x16\x03\x01\x02\x00\x01\x00\r\n\r\n')
        link.settimeout(10)
        head, body = b''.join(iter(lambda: link.recv(10**5), b'')).split(b'\r\n\r\n')
    assert b' 400 ' in head.splitlines()[0] and 'error' in json.loads(body)


def test_a_thousand_questions_at_once(running, client, beach):
    async def ask():
        limits = httpx2.Limits(max_connections=100)
        async with httpx2.AsyncClient(base_url=running.url, limits=limits, timeout=60) as own:
            return await asyncio.gather(*[own.post(
                f'/v1/videos/{beach}/queries', json=dict(queries=[f'a dog runs {i}'] * 10))
                for i in range(100)])

    answers = asyncio.run(ask())
    states = {answer.status_code for answer in answers}
    assert states <= {200, 503} and 200 in states
    for answer in answers:
        if answer.status_code == 503:
            assert answer.json()['error'].endswith('expected at most 256')
            assert answer.headers['retry-after'] == '1'


def test_too_many_requests_a_second(client, limited, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(guard, 'time', types.SimpleNamespace(monotonic=lambda: now))
    limited(rate=2)
    answers = [client.get('/v1') for _ in range(6)]
    assert [answer.status_code for answer in answers] == [200] * 4 + [429] * 2
    assert answers[-1].headers['retry-after'] == '1'
    assert client.get('/healthz').status_code == 200
    assert client.get('/metrics').status_code == 429  # a token is not to be guessed there


@pytest.mark.parametrize('body, status, reason', [
    (b'{', 400, 'no JSON'), (b'[' * 60000, 400, 'no JSON'), (b'\xff\xfe', 400, 'no JSON'),
    (b'[1]', 422, 'expected a JSON object'), (b'{}', 422, 'queries is missing'),
    (b'{"queries": "a dog"}', 422, 'queries is "a dog", expected list'),
    (b'{"queries": []}', 422, '0 queries, expected 1 to 16'),
    (b'{"queries": [" "]}', 422, 'a query is empty'),
    (b'{"queries": [7]}', 422, 'a query is empty'),
    (json.dumps(dict(queries=['x' * 501])).encode(), 422, 'a query of 501 characters'),
    (b'{"queries": ["\\ud800"]}', 422, 'a query has half a character in it'),
    (b'{"queries": ["a"], "top": true}', 422, 'top is true, expected int'),
    (b'{"queries": ["a"], "top": 99}', 422, 'top is 99, expected 1 to 10'),
    (b'{"queries": ["a"], "format": "exe"}', 422, "format 'exe', expected one of json, csv"),
    (b'{"queries": ["a"], "__class__": 1}', 422, "unknown field '__class__'"),
    (b'{"queries": ["' + b'a' * 70000 + b'"]}', 413, 'more than 65536 bytes of JSON'),
])
def test_bad_questions(client, beach, body, status, reason):
    answer = client.post(f'/v1/videos/{beach}/queries', content=body,
                         headers={'content-type': 'application/json'})
    assert (answer.status_code, answer.json()['error'][:len(reason)]) == (status, reason)


def test_odd_sentences_are_answered(client, beach):
    odd = ['\0', 'a\nb', '<script>alert(1)</script>', '🦆' * 100, '\u202eabc', '<|endoftext|>',
           '!' * 500, "'; DROP TABLE videos; --"]
    answer = client.post(f'/v1/videos/{beach}/queries',
                         content=json.dumps(dict(queries=odd, attention=True)),
                         headers={'content-type': 'application/json'})
    assert [row['query'] for row in answer.json()['results']] == odd


@pytest.mark.parametrize('path', [
    '../run/checkpoints', '/etc/passwd', '../videos', '.', '', 'nowhere.mp4', 'a\0b', 'out.mp4',
    'notes.txt', 'x' * 5000, '~/.bashrc', 'file:beach.webm'])
def test_paths_stay_in_the_allowed_folder(client, files, path, tmp_path):
    link = files / 'videos' / 'out.mp4'
    if not link.is_symlink():
        (files / 'secret.mp4').write_bytes(MP4)
        link.symlink_to(files / 'secret.mp4')
    answer = client.post('/v1/videos', json=dict(path=path))
    assert answer.status_code in (404, 415), answer.text
    told = client.get('/v1/samples').json()['samples']
    assert {row['path'] for row in told} >= {'beach.webm', 'long.mp4'}
    assert 'out.mp4' not in [row['path'] for row in told]


@pytest.mark.parametrize('path, status', [
    ('/..%2f..%2fetc%2fpasswd', 404), ('/static/../api.py', 404), ('/api.py', 404),
    ('/v1/videos/..%2f..', 404), ('/v1/videos/%00/content', 404), ('/v1/videos/' + 'a' * 9000, 404),
    ('/v1/videos/BEACH/content?x', 416)])
def test_addresses(client, beach, path, status):
    answer = client.get(path.replace('BEACH', beach), headers={'range': 'bytes=99999999-'})
    assert answer.status_code == status and list(answer.json()) == ['error']


def test_other_methods_and_types(client, beach):
    assert client.put('/v1/videos').status_code == 405
    assert client.options('/v1/videos', headers={'origin': 'http://evil.example'}).status_code in (
        403, 405)
    assert client.post('/v1/videos', content=b'x').status_code == 415
    assert client.post('/v1/videos', files=dict(file=b'x')).status_code == 415
    answer = client.post(f'/v1/videos/{beach}/queries', content=b'{"queries": ["a"]}',
                         headers={'content-type': 'text/plain'})
    assert answer.status_code == 415
    for answer in (client.get('/'), client.get('/v1')):
        assert 'access-control-allow-origin' not in answer.headers
        assert "default-src 'none'" in answer.headers['content-security-policy']


def test_pages_of_others_are_kept_out(client, beach):
    for origin in ('http://evil.example', 'null', 'http://['):
        other = client.post('/v1/videos', json=dict(path='beach.webm'), headers=dict(origin=origin))
        assert other.status_code == 403
    for host in ('evil.example', '[', '127.0.0.1.evil.example', ''):
        assert client.get('/v1', headers=dict(host=host)).status_code == 421


def test_a_token_is_asked_for(client, beach, running, monkeypatch):
    monkeypatch.setattr(running.service, 'token', 'correct-horse-battery')
    for path in ('/v1', '/v1/videos', '/metrics', f'/v1/videos/{beach}/content'):
        assert client.get(path).status_code == 401
        for wrong in ('Bearer x', 'correct-horse-battery', 'Bearer correct-horse-batterY', 'é'):
            answer = client.get(path, headers={'authorization': wrong.encode()})
            assert answer.status_code == 401
            assert answer.json()['error'] == 'expected the header Authorization: Bearer TOKEN'
    assert client.get('/').status_code == client.get('/healthz').status_code == 200
    own = {'authorization': 'Bearer correct-horse-battery'}
    content = client.get(f'/v1/videos/{beach}', headers=own).json()['content']
    assert client.get('/' + content).status_code == 200
    assert client.get('/' + content[:-1] + '!').status_code == 401
    assert client.get('/' + content.replace('/content', '')).status_code == 401
    assert client.post('/' + content.replace('content', 'queries')).status_code == 401
    monkeypatch.undo()


def test_there_may_be_no_room(client, limited, running, monkeypatch, files):
    path = videos.make(files / 'room.mp4', 3)
    monkeypatch.setattr(running.service.jobs, '_most', 0)
    full = client.post('/v1/videos', content=path.read_bytes(), headers=VIDEO)
    assert full.status_code == 503 and 'videos wait' in full.json()['error']
    monkeypatch.undo()
    limited(uploads=0)
    assert client.post('/v1/videos', content=path.read_bytes(), headers=VIDEO).status_code == 503
    monkeypatch.undo()

    def no_space(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(running.service.store, 'add', no_space)
    answer = client.post('/v1/videos', content=path.read_bytes(), headers=VIDEO)
    assert answer.status_code == 507
    assert answer.json()['error'] == 'the disk of the service: No space left on device'
    assert not left_over(running)


def test_a_full_store_is_told_so(running, client, monkeypatch, files, beach):
    store = running.service.store
    monkeypatch.setattr(store, 'limit', store.bytes() + 10)
    monkeypatch.setattr(store, '_drop_idle', lambda size: None)  # the others are in use
    path = videos.make(files / 'full.mp4', 3)
    answer = client.post('/v1/videos', content=path.read_bytes(), headers=VIDEO)
    assert answer.status_code == 409 and answer.json()['error'].startswith('no room for ')
    assert not left_over(running) and client.get(f'/v1/videos/{beach}').json()['state'] == 'ready'


def test_an_error_of_the_service_names_no_path(running, client, monkeypatch, files):
    def fails(*_):
        raise OSError(28, 'No space left on device', '/srv/store')

    monkeypatch.setattr(running.service.store, 'finish', fails)
    path = videos.make(files / 'secretive.mp4', 4)
    answer = client.post('/v1/videos', content=path.read_bytes(), headers=VIDEO)
    video = wait_for(client, answer.json()['id'])
    assert video['state'] == 'failed' and '/srv' not in video['error']


def test_damaged_features_are_told_without_their_path(running, client, files):
    path = videos.make(files / 'damaged.mp4', 5)
    video = wait_for(client, client.post(
        '/v1/videos', content=path.read_bytes(), headers=VIDEO).json()['id'])
    (running.service.store.folder / video['id'] / 'features.npz').write_bytes(b'PK')
    address = f"/v1/videos/{video['id']}"
    answer = client.post(f'{address}/queries', json=dict(queries=['a dog']))
    assert (answer.status_code, answer.json()['error']) == (
        409, 'the features of the video are damaged; delete it, and upload it again')
    assert client.delete(address).status_code == 204


def test_names_are_for_people_alone():
    assert api._clean('../../etc/passwd') == 'passwd'
    assert api._clean('C:\\videos\\a.mp4') == 'a.mp4'
    assert api._clean('a\r\nb\x00\u202e.mp4') == 'ab.mp4'
    assert api._clean('/') == 'video' and len(api._clean('x' * 999)) == 100


def test_containers_are_known_by_their_first_bytes(tmp_path):
    kinds = dict(mp4='mp4', mov='quicktime', webm='webm', mkv='x-matroska', avi='x-msvideo',
                 flv='x-flv', ts='mp2t', m2ts='mp2t', mpg='mpeg', wmv='x-ms-wmv', ogv='ogg')
    codecs = dict(webm='libvpx', ogv='libtheora', mpg='mpeg2video', wmv='wmv2', flv='flv1',
                  ts='mpeg2video', m2ts='mpeg2video')
    paths = [tmp_path / f'a.{ending}' for ending in kinds]
    videos.ffmpeg(videos.scene(0.4, '25'), *(part for path in paths for part in (
        f'-c:v {codecs.get(path.suffix[1:], "mpeg4")} -pix_fmt yuv420p', path)))
    for path, kind in zip(paths, kinds.values(), strict=True):
        with open(path, 'rb') as file:
            assert reading.media_type(file.read(reading.HEAD)) == f'video/{kind}', path
