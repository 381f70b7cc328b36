"""The flags of mode serve, and its log."""

import asyncio
import contextlib
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types

import pytest
import uvicorn
from ml_collections import ConfigDict

from data_pipelines.errors import ConfigError
from dualground_jax import cli
from dualground_jax.serve import server
from dualground_jax.serve.limits import Limits
from tests.helpers import serving


@pytest.mark.parametrize('content', ['', 'short', 'two words that are long', 'ü' * 20])
def test_bad_tokens(tmp_path, content):
    path = tmp_path / 'token'
    path.write_text(content)
    with pytest.raises(ConfigError, match='expected one word of 16 or more plain characters'):
        server.read_token(str(path))
    with pytest.raises(ConfigError, match="nowhere: can't be read"):
        server.read_token(str(tmp_path / 'nowhere'))


def test_what_is_not_there_is_told_first(tmp_path):
    values = types.SimpleNamespace(workdir=str(tmp_path), encoder=None, token_file=None,
                                   videos=str(tmp_path / 'nowhere'))
    config = ConfigDict(dict(data=dict(recipe='')))
    with pytest.raises(ConfigError, match='--mode=serve needs --encoder=clip=FOLDER'):
        server.run(values, config)
    values.encoder = 'clip=x'
    with pytest.raises(ConfigError, match='--videos=.*nowhere: no such folder'):
        server.run(values, config)
    values.workdir = str(tmp_path / 'workdir')
    with pytest.raises(ConfigError, match='--videos=.*nowhere: no such folder'):
        server.run(values, config)


def test_a_place_that_is_taken_is_told_before_anything_is_compiled():
    with server.bind('127.0.0.1', 0) as place:
        taken = place.getsockname()[1]
        with pytest.raises(ConfigError, match=f'--port={taken}: Address already in use'):
            server.bind('127.0.0.1', taken)
    with pytest.raises(ConfigError, match='--host=nowhere.invalid --port=80: '):
        server.bind('nowhere.invalid', 80)


def test_answers_are_sent_without_delay():
    async def accepted() -> int:
        found = asyncio.get_running_loop().create_future()

        class Protocol(asyncio.Protocol):
            def connection_made(self, transport):
                found.set_result(transport.get_extra_info('socket').getsockopt(
                    socket.IPPROTO_TCP, socket.TCP_NODELAY))

        place = server.bind('127.0.0.1', 0)
        async with await asyncio.get_running_loop().create_server(Protocol, sock=place):
            _, writer = await asyncio.open_connection(*place.getsockname())
            with contextlib.closing(writer):
                return await found

    assert asyncio.run(accepted())


def test_the_address_is_told_once_it_serves(caplog):
    async def app(scope, receive, send):
        await receive()
        await send(dict(type='lifespan.startup.complete'))
        await receive()
        await send(dict(type='lifespan.shutdown.complete'))

    place = server.bind('127.0.0.1', 0)
    port = place.getsockname()[1]
    own = server.Server(uvicorn.Config(app, '127.0.0.1', port, log_config=None))
    thread = threading.Thread(target=own.run, args=([place],))
    with caplog.at_level(logging.INFO, 'dualground.serve'):
        thread.start()
        while not own.started:
            time.sleep(0.01)
        own.should_exit = True
        thread.join()
    assert [record.address for record in caplog.records if record.message == 'serving'] == [
        f'http://127.0.0.1:{port}']


def test_tokens(tmp_path):
    (tmp_path / 'token').write_text('correct-horse-battery\n')
    assert server.read_token(str(tmp_path / 'token')) == 'correct-horse-battery'
    assert server.read_token(None) == ''


def test_a_start_ends_whichever_thread_gets_the_signal():
    program = """if True:
        import signal, threading, time
        from dualground_jax.serve import server

        def other():
            time.sleep(0.5)  # until the main thread waits
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
            threading.Event().wait()

        with server.ends_at_once():
            threading.Thread(target=other).start()
            threading.Event().wait()
        """
    assert subprocess.run([sys.executable, '-c', program], timeout=60).returncode == 0


def test_a_start_can_be_stopped_while_programs_compile(tmp_path):
    flags = serving.write(tmp_path)
    service = subprocess.Popen(
        [sys.executable, '-m', 'dualground_jax.main', '--mode=serve', *flags, '--port=0'],
        stderr=subprocess.PIPE, text=True,
        env=os.environ | dict(JAX_COMPILATION_CACHE_DIR=str(tmp_path / 'cache')))
    told = ''
    while '"compiled"' not in told:  # the first of several programs
        line = service.stderr.readline()
        assert line, told
        told += line
    service.send_signal(signal.SIGTERM)
    told += service.communicate(timeout=60)[1]
    assert service.returncode == 0, told
    assert not [word for word in ('"ready"', 'Fatal', 'Traceback') if word in told]


def test_limits_of_the_flags():
    named = {name: default for _, name, default, *_ in cli.FLAGS['serve']}
    assert Limits.of(types.SimpleNamespace(**named), 3) == Limits(decoders=3)
    changed = types.SimpleNamespace(**named | dict(upload_mb=1.5, video_minutes=2.0, store_gb=0.1))
    found = Limits.of(changed, 3)
    assert (found.upload_bytes, found.video_seconds, found.store_bytes) == (1500000, 120, 1e8)


def test_the_log_has_an_object_a_line():
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(server._Json())
    log = logging.Logger('own')
    log.addHandler(handler)
    log.info('request', extra=dict(status=200, path=types))
    try:
        raise ValueError('a\nb')
    except ValueError:
        log.exception('job')
    first, second = map(json.loads, text.getvalue().splitlines())
    assert (first['level'], first['event'], first['status']) == ('info', 'request', 200)
    assert 'ValueError: a\nb' in second['trace'] and first['time'] < second['time'] + 'x'
