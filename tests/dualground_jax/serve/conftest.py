"""One service for all tests of this folder, on a port of the loopback, in a thread."""

import threading
import time
import types

import httpx2
import pytest
import uvicorn

from dualground_jax.grounding.predictor import Predictor
from dualground_jax.serve import api, server, service
from dualground_jax.serve.limits import Limits
from tests.helpers import serving, videos

VP8 = '-c:v libvpx -deadline realtime -cpu-used 8 -g 5'


@pytest.fixture(scope='session', name='files')
def written_files(tmp_path_factory):
    """Folders `run`, `clip` and `videos`."""
    folder = tmp_path_factory.mktemp('serving')
    serving.write(folder)
    (folder / 'videos').mkdir()
    videos.make(folder / 'videos' / 'beach.webm', 24, size='320x180', codec=VP8)
    videos.make(folder / 'videos' / 'long.mp4', 70)
    (folder / 'videos' / 'notes.txt').write_text('no video')
    (folder / 'videos' / 'annotations.jsonl').write_text('{"vid": "long", "query": "a man runs"}\n')
    return folder


@pytest.fixture(scope='session', name='predictor')
def loaded_predictor(files):
    return Predictor.from_checkpoint(files / 'run', encoder=f'clip={files / "clip"}')


@pytest.fixture(scope='session', name='running')
def running_service(files, predictor):
    """The service and its address."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, 'SIZES', (4,))
        own = service.Service(
            predictor, files / 'served', Limits(rate=0, timeout=20, decoders=2),
            videos=str(files / 'videos'))
        own.start()
        config = uvicorn.Config(
            api.make(own, server.LOOPBACK), '127.0.0.1', 0, http=server.Protocol, ws='none',
            lifespan='on', log_config=None, server_header=False)
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run)
        thread.start()
        while not running.started and thread.is_alive():
            time.sleep(0.02)
        port = running.servers[0].sockets[0].getsockname()[1]
        yield types.SimpleNamespace(service=own, port=port, url=f'http://127.0.0.1:{port}')
        running.should_exit = True
        thread.join()


@pytest.fixture(name='client')
def http_client(running):
    with httpx2.Client(base_url=running.url, timeout=30) as client:
        yield client


@pytest.fixture(scope='session', name='beach')
def beach_id(running):
    """The id of a sample that is encoded."""
    with httpx2.Client(base_url=running.url, timeout=30) as client:
        video = client.post('/v1/videos', json=dict(path='beach.webm')).json()
        return wait_for(client, video['id'])['id']


def wait_for(client, key, *states):
    """Waits until a video is ready or in another of these states; returns what is said of it."""
    for _ in range(600):
        video = client.get(f'/v1/videos/{key}').json()
        if video['state'] in (states or ('ready', 'failed', 'cancelled')):
            return video
        time.sleep(0.05)
    raise AssertionError(video)
