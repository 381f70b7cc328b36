"""The API: what it answers, as its document says."""

import csv
import dataclasses
import io
import json
import re
import time

import jsonschema
import numpy as np
import pytest

from data_pipelines.errors import ConfigError
from dualground_jax.serve import api, openapi, service
from dualground_jax.serve.limits import Limits
from dualground_jax.serve.store import Store, Video
from tests.dualground_jax.serve.conftest import wait_for
from tests.helpers import decoders, videos

QUERIES = ['a man in a red shirt', 'the dog runs']


@pytest.fixture(scope='module', name='schema')
def check_schema():
    """Checks an answer against the document."""
    document = openapi.document(Limits())

    def check(answer):
        path = re.sub('/v1/videos/[0-9a-z]+', '/v1/videos/{id}', answer.request.url.path)
        operation = document['paths'][path][answer.request.method.lower()]
        told = operation['responses'][str(answer.status_code)]
        kind = answer.headers.get('content-type', '').partition(';')[0]
        if 'content' not in told:
            assert not answer.content
        elif kind == 'application/json':
            jsonschema.Draft202012Validator(
                told['content'][kind]['schema'] | dict(components=document['components'])
            ).validate(answer.json())
        else:
            assert kind in told['content'] or 'video/*' in told['content']
        return answer.json() if kind == 'application/json' else answer.text

    return check


def test_the_document_names_every_route(running, client):
    document = client.get('/openapi.json').json()
    jsonschema.Draft202012Validator.check_schema(
        dict(document['components']['schemas']['Result'], components=document['components']))
    app = api.make(running.service)._app
    routes = {(route.path, method) for route in app.routes for method in route.methods}
    page = {('/', 'GET')} | {(f'/{path.name}', 'GET') for path in api.PAGE.iterdir()}
    told = {(path, method.upper()) for path, operations in document['paths'].items()
            for method in operations}
    assert {route for route in routes if route[1] != 'HEAD'} - page == told


def test_an_upload_is_encoded_and_asked(running, client, files, schema):
    """What is found is what the predictor finds without a service."""
    predictor = running.service.predictor
    path = videos.make(files / 'upload.mp4', 21)
    answer = client.post('/v1/videos?name=../../home/a%0Ab.mp4', content=path.read_bytes(),
                         headers={'content-type': 'video/mp4'})
    video = schema(answer)
    assert answer.status_code == 202 and video['name'] == 'ab.mp4'
    assert schema(client.get(f'/v1/videos/{video["id"]}'))['state'] in (
        'queued', 'encoding', 'ready')
    video = wait_for(client, video['id'])
    assert video['state'] == 'ready' and video['duration'] == 21 and video['width'] == 64
    assert video['id'] in [row['id'] for row in schema(client.get('/v1/videos'))['videos']]
    asked = client.post(f'/v1/videos/{video["id"]}/queries', json=dict(queries=QUERIES, top=4))
    results = schema(asked)['results']
    alone = predictor.predict(predictor.encode_video(path), QUERIES)
    for result, moments in zip(results, alone, strict=True):
        assert len(result['windows']) == 4
        np.testing.assert_allclose(result['windows'], moments.windows[:4], atol=2e-3)
        np.testing.assert_allclose(result['saliency'], moments.saliency, atol=2e-3)
    again = client.post('/v1/videos?name=other.mp4', content=path.read_bytes(),
                        headers={'content-type': 'application/octet-stream'})
    assert again.status_code == 200 and again.json()['id'] == video['id']
    part = client.get(video['content'], headers={'range': 'bytes=4-7'})
    assert part.status_code == 206 and part.content == b'ftyp'
    assert part.headers['content-type'] == 'video/mp4'
    assert part.headers['x-content-type-options'] == 'nosniff'
    assert schema(client.delete(f'/v1/videos/{video["id"]}')) == ''
    assert schema(client.get(f'/v1/videos/{video["id"]}')) == dict(error='no such video')
    assert not (running.service.store.folder / video['id']).exists()


def test_words_and_phrases_have_attention(client, beach, schema):
    long = ' '.join(['whereupon'] * 20)
    asked = client.post(f'/v1/videos/{beach}/queries', json=dict(
        queries=[QUERIES[0], long], attention=True))
    first, second = schema(asked)['results']
    assert [word['text'] for word in first['words']] == QUERIES[0].split()
    clips = len(first['saliency'])
    assert clips == 12 and len(first['sentence']) == clips and len(first['phrases']) == 2
    for phrase in first['phrases']:
        assert sum(phrase['shares']) == pytest.approx(1, abs=1e-3)
    # A word answers by the phrases' energies and its shares in them, weighted by the model.
    words = np.array([word['attention'] for word in first['words']])
    energies = np.array([phrase['attention'] for phrase in first['phrases']])
    shares = np.array([phrase['shares'] for phrase in first['phrases']])
    weights = np.linalg.lstsq(
        np.stack([np.outer(s, e).ravel() for s, e in zip(shares, energies)], 1), words.ravel(),
        rcond=None)[0]
    assert weights.sum() == pytest.approx(1, abs=1e-2)
    assert second['words'][0]['attention'] and second['words'][-1]['attention'] is None


def test_exports(client, beach):
    ask = lambda form: client.post(f'/v1/videos/{beach}/queries', json=dict(
        queries=QUERIES, top=2, format=form))
    rows = ask('json').json()['results']
    table = list(csv.DictReader(io.StringIO(ask('csv').text)))
    assert [(row['query'], float(row['start'])) for row in table] == [
        (row['query'], window[0]) for row in rows for window in row['windows']]
    cuts = ask('ffconcat')
    assert "file 'beach.webm'" in cuts.text and cuts.text.count('inpoint') <= 4
    assert 'attachment' in cuts.headers['content-disposition']
    assert 'FROM CLIP NAME: beach.webm' in ask('edl').text


def test_queries_of_several_videos_share_batches(running, client, beach, monkeypatch):
    key = client.post('/v1/videos', json=dict(path='long.mp4')).json()['id']
    assert wait_for(client, key)['state'] == 'ready'
    own, sizes = running.service, []
    alone = {name: client.post(f'/v1/videos/{name}/queries', json=dict(queries=QUERIES)).json()
             for name in (key, beach)}
    ask = own.predictor.predict_pairs

    def counted(videos, queries):
        sizes.append(len(queries))
        return ask(videos, queries)

    monkeypatch.setattr(own.predictor, 'predict_pairs', counted)
    with own.device._changed:  # all of them wait
        futures = {name: own.device.ask(own.store.find(name), QUERIES) for name in (key, beach)}
    assert sizes == [] or max(sizes) <= 4
    for name, found in futures.items():
        for future, row in zip(found, alone[name]['results'], strict=True):
            windows = future.result(30).moments.windows
            np.testing.assert_allclose(windows, row['windows'], atol=2e-3)
    assert sizes == [4]


def test_progress_and_cancel(running, client, files, schema, monkeypatch):
    """A decoder that takes its time."""
    slow = dataclasses.replace(running.service.jobs._encoder.streams[0], decode=decoders.slow)
    encoder = dataclasses.replace(running.service.jobs._encoder, streams=(slow,))
    monkeypatch.setattr(running.service.jobs, '_encoder', encoder)
    path = videos.make(files / 'slow.mp4', 30)
    key = client.post('/v1/videos', content=path.read_bytes(),
                      headers={'content-type': 'video/mp4'}).json()['id']
    for _ in range(300):
        video = schema(client.get(f'/v1/videos/{key}'))
        if video.get('seconds_left'):
            break
        time.sleep(0.05)
    assert 0 < video['progress'] < 1 and video['seconds_left'] > 0
    early = client.post(f'/v1/videos/{key}/queries', json=dict(queries=QUERIES))
    assert early.status_code == 409 and 'encoding, expected ready' in schema(early)['error']
    assert schema(client.post(f'/v1/videos/{key}/cancel'))['state'] == 'cancelled'
    assert client.post(f'/v1/videos/{key}/cancel').status_code == 409
    assert not (running.service.store.folder / key).exists()
    monkeypatch.undo()
    again = client.post('/v1/videos', content=path.read_bytes(),
                        headers={'content-type': 'video/mp4'})
    assert again.status_code == 202 and wait_for(client, key)['state'] == 'ready'


def test_a_stop_loses_nothing(predictor, files, monkeypatch):
    """A running video is finished, one that waits is encoded after the next start."""
    monkeypatch.setattr(service.Service, '_warm_up', lambda self: None)
    limits = Limits(decoders=1)
    first = service.Service(predictor, files / 'stopped', limits, videos=str(files / 'videos'))
    first.start()
    own = api._Api(first)
    running, waiting = (own._choose(name) for name in ('long.mp4', 'beach.webm'))
    for video in (running, waiting):
        first.store.add(video, None)
        first.jobs.submit(video)
    while running.state == 'queued':
        pass
    first.stop()
    assert (running.state, waiting.state) == ('ready', 'queued')
    second = service.Service(predictor, files / 'stopped', limits)
    states = {key: video.state for key, video in second.store.videos.items()}
    assert states == {running.id: 'ready', waiting.id: 'queued'}
    assert second.store.load(second.store.videos[running.id]).duration == 70
    second.start()
    assert second.describe(second.store.videos[running.id])['progress'] == 1.0
    while second.store.videos[waiting.id].state != 'ready':
        pass
    second.stop()


def test_the_store_makes_room(files, predictor, tmp_path):
    recipe = predictor.encoder.recipe
    store = Store(tmp_path / 'store', 1e9, recipe)
    encoded = predictor.encode_video(iter(np.zeros((2, 32, 32, 3), np.uint8)))

    def add(name):
        upload = tmp_path / 'store' / f'.{name}.part'
        upload.write_bytes(b'x' * 300)
        video = store.add(Video(name, name, 'video/mp4', 300), upload)
        assert store.begin(video, 0.0) and store.finish(video, encoded)
        return video

    first, second = add('first'), add('second')
    size = store.bytes() // 2
    store.limit = 2.5 * size
    store.find('first')  # used after the second one
    third = add('third')
    assert set(store.videos) == {'first', 'third'} and store.bytes() <= store.limit
    assert store.path(first).exists() and not store.path(second).exists()
    store.close()
    again = Store(tmp_path / 'store', 2500, recipe)
    assert {video.state for video in again.videos.values()} == {'ready'}
    again.close()
    other = Store(tmp_path / 'store', 2500, dataclasses.replace(recipe, rule='start'))
    assert {video.state for video in other.videos.values()} == {'queued'}
    with pytest.raises(ConfigError, match='another service uses this folder'):
        Store(tmp_path / 'store', 2500, recipe)
    other.close()
    assert third.id in other.videos


def test_the_store_leaves_folders_of_others_alone(predictor, tmp_path):
    (tmp_path / '.git').mkdir()
    half = tmp_path / f'.{"a" * 32}.x'
    half.mkdir()
    Store(tmp_path, 1e9, predictor.encoder.recipe).close()
    assert (tmp_path / '.git').is_dir() and not half.exists()
    (tmp_path / 'own').mkdir()
    record = Video('../own', 'a', 'video/mp4', 1).record()
    (tmp_path / 'own' / 'video.json').write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="id is '../own'"):
        Store(tmp_path, 1e9, predictor.encoder.recipe)


def test_metrics_and_health(client, beach):
    client.post(f'/v1/videos/{beach}/queries', json=dict(queries=QUERIES))
    assert client.get('/healthz').json() == dict(status='ok')
    text = client.get('/metrics').text
    assert re.search(r'dualground_requests_total\{method="POST",route="/v1/videos/\{id\}/queries",'
                     r'status="200"\} [1-9]', text)
    for name in ('batch_queries_count', 'jobs_total{state="ready"}', 'store_bytes', 'waiting_qu'):
        assert f'dualground_{name}' in text
    assert beach not in text
    assert client.request('ODD', '/').status_code == 405
    assert 'ODD' not in client.get('/metrics').text
