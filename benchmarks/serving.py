"""A service under load, and stopped in the midst of work; on the loopback, bounded in time.

    python -m benchmarks.serving [--workdir=DIR --encoder=clip=FOLDER] [--clients 50]
        [--seconds 30] [--videos 4] [--video-seconds 150] [--output F.json]

Without --workdir it takes a DualGround of the QVHighlights recipe and a CLIP ViT-B/32, both with
random weights. Starts `--mode=serve`, uploads videos, measures single queries cold and warm and
batches of 16, then lets clients ask one to three sentences of any video; one request in twenty
uploads a new short video. The device's share of a latency is told by the service's own counter;
what of it are the text encoder and the model, by the same programs in this process. Tells
throughput, latencies, errors, and the memory of the service at the start, half way and at the end.
At last it sends SIGTERM while videos are encoded and others wait: none may be lost.
"""

import collections
import contextlib
import dataclasses
import json
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import httpx2
import numpy as np

from benchmarks import common
from configs import qvh
from data_pipelines import video
from dualground_jax.checkpoints import Checkpoints
from dualground_jax.grounding.encoded import EncodedVideo
from dualground_jax.grounding.predictor import Predictor
from dualground_jax.serve import service
from tests.helpers import clip_folder

SENTENCES = ['a red circle', 'two striped squares beside a star', 'the small dog runs away',
             'a person in a blue shirt opens the door and leaves']
SHORT = 6  # seconds of the videos that are uploaded under load
RATE = 5  # frames a second


@dataclasses.dataclass
class Running:
    """A service in a process of its own."""

    process: subprocess.Popen
    url: str

    def memory_mb(self) -> float:
        status = pathlib.Path(f'/proc/{self.process.pid}/status').read_text()
        return int(status.partition('VmRSS:')[2].split()[0]) / 1e3

    def client(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=300)


@contextlib.contextmanager
def started(workdir: str, encoder: str, store: str, *flags: str) -> Iterator[tuple[Running, float]]:
    """A service and the seconds until it answered."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, '-m', 'dualground_jax.main', '--mode=serve', f'--workdir={workdir}',
         f'--encoder={encoder}', f'--output={store}', '--port=0', '--rate=0', *flags],
        stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            if '"serving"' in line:
                running = Running(process, json.loads(line)['address'])
                break
            if line.startswith('error'):
                sys.exit(line)
            if '"compiled"' in line:
                print(line, end='', file=sys.stderr)
        threading.Thread(target=process.stderr.read, daemon=True).start()  # or it would block
        yield running, time.perf_counter() - begin
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(120)


def make_video(path: pathlib.Path, seconds: float) -> bytes:
    """Noise that changes each second."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (int(seconds), 12, 16, 3), np.uint8)
    video.write(path, (np.kron(picture, np.ones((8, 8, 1), np.uint8))
                       for picture in pictures for _ in range(RATE)), RATE)
    return path.read_bytes()


def another(content: bytes) -> bytes:
    """The same MP4 with other bytes: a box at its end that players skip."""
    return content + (16).to_bytes(4) + b'free' + random.randbytes(8)


def upload(client: httpx2.Client, content: bytes) -> str:
    answer = client.post('/v1/videos', content=content, headers={'content-type': 'video/mp4'})
    answer.raise_for_status()
    return answer.json()['id']


def wait_for(client: httpx2.Client, key: str) -> dict:
    while True:
        found = client.get(f'/v1/videos/{key}').json()
        if found['state'] not in ('queued', 'encoding'):
            return found
        time.sleep(0.05)


def ask(client: httpx2.Client, key: str, sentences: list[str]) -> httpx2.Response:
    return client.post(f'/v1/videos/{key}/queries', json=dict(queries=sentences))


def latencies(client: httpx2.Client, key: str, repeats: int = 20) -> list[dict]:
    """Milliseconds of a sentence and of 16 on an encoded video."""
    rows = []
    for name, count, times in (('first', 1, 1), ('warm', 1, repeats), ('batch of 16', 16, repeats)):
        found, before = [], device_seconds(client)
        for i in range(times):
            sentences = [f'{SENTENCES[i % 4]} {j}' for j in range(count)]
            begin = time.perf_counter()
            ask(client, key, sentences).raise_for_status()
            found.append((time.perf_counter() - begin) * 1e3)
        share = (device_seconds(client) - before) * 1e3 / sum(found)
        rows.append(dict(request=name, median_ms=float(np.median(found)), worst_ms=max(found),
                         device_share=share))
    return rows


def parts(workdir: str, encoder: str, clips: int, repeats: int = 20) -> list[dict]:
    """Milliseconds of the text encoder, and of it and the model, as the service runs them."""
    predictor = service.shared(Predictor.from_checkpoint(workdir, encoder=encoder))
    rng, data = np.random.default_rng(0), predictor.config.data
    video = EncodedVideo([rng.normal(size=(clips, width)).astype(np.float32)
                          for width in data.video_dims], clips * data.clip_length,
                         predictor.require_encoder().recipe)

    def seconds(run: Callable, *arguments) -> float:
        begin = time.perf_counter()
        run(*arguments)
        return time.perf_counter() - begin

    rows = []
    for count in (1, 16):
        sentences, texts, wholes = [f'{SENTENCES[i % 4]} {i}' for i in range(count)], [], []
        for _ in range(repeats + 1):
            texts.append(seconds(predictor.encoder.encode_text, sentences))
            wholes.append(seconds(predictor.predict_pairs, [video] * count, sentences))
        text, whole = (float(np.median(found[1:])) for found in (texts, wholes))  # one compiles
        rows.append(dict(sentences=count, text_ms=text * 1e3, model_ms=(whole - text) * 1e3,
                         model_share=1 - text / whole))
    return rows


def stand_ins(folder: pathlib.Path) -> tuple[str, str]:
    """A workdir and an encoder of real sizes with random weights."""
    clip_folder.write(folder / 'clip', sizes=dict(
        vision=dict(width=768, heads=12, ffn=3072, num_layers=12, size=224, patch=32),
        text=dict(width=512, heads=8, ffn=2048, num_layers=12, context=77), projected=512))
    config = qvh.get_config('features=sf_clip')
    config.data.update(video_dirs=('clip',), video_dims=(512,))
    state = common.TrainStep(config).state
    Checkpoints(folder / 'run').save('best', state, config, dict(best_step=0, best_value=0.0))
    return f'{folder}/run', f'clip={folder}/clip'


def device_seconds(client: httpx2.Client) -> float:
    line = next(line for line in client.get('/metrics').text.splitlines()
                if line.startswith('dualground_device_seconds_total{work="queries"}'))
    return float(line.split()[-1])


def load(running: Running, keys: list[str], short: bytes, clients: int, seconds: float
         ) -> tuple[list[dict], list[dict]]:
    """Rows of latencies by kind of request, and of the service's memory."""
    times, states = collections.defaultdict(list), collections.Counter()
    end = time.perf_counter() + seconds

    def work(seed: int) -> None:
        rng = random.Random(seed)
        with running.client() as client:
            while time.perf_counter() < end:
                begin = time.perf_counter()
                if rng.random() < 0.05:
                    kind = 'upload'
                    answer = client.post('/v1/videos', content=another(short),
                                         headers={'content-type': 'video/mp4'})
                else:
                    kind = 'query'
                    sentences = rng.choices(SENTENCES, k=rng.randint(1, 3))
                    answer = ask(client, rng.choice(keys), sentences)
                times[kind].append(time.perf_counter() - begin)
                states[kind, answer.status_code] += 1
                if answer.status_code == 503:
                    time.sleep(float(answer.headers['retry-after']))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(clients)]
    memory = []
    for thread in threads:
        thread.start()
    for part in range(7):
        wait = end - seconds * (1 - part / 6) - time.perf_counter()
        time.sleep(max(wait, 0))
        memory.append(dict(second=seconds * part / 6, service_mb=running.memory_mb()))
    for thread in threads:
        thread.join()
    rows = []
    for kind, found in times.items():
        p50, p95, p99 = np.percentile(np.array(found) * 1e3, [50, 95, 99])
        answers = {code: n for (own, code), n in sorted(states.items()) if own == kind}
        rows.append(dict(request=kind, count=len(found), per_second=len(found) / seconds,
                         p50_ms=p50, p95_ms=p95, p99_ms=p99,
                         answers=' '.join(f'{code}: {n}' for code, n in answers.items())))
    return rows, memory


def stop_at_work(options, folder: pathlib.Path, content: bytes) -> list[dict]:
    """SIGTERM while one video is encoded and others wait; then another start."""
    store = str(folder / 'stopped')
    with started(options.workdir, options.encoder, store, '--decoders=1') as (running, _), (
            running.client()) as client:
        keys = [upload(client, another(content)) for _ in range(4)]
        while client.get(f'/v1/videos/{keys[0]}').json().get('progress', 0) < 0.1:
            time.sleep(0.01)
        begin = time.perf_counter()
        running.process.send_signal(signal.SIGTERM)
        code = running.process.wait(300)
        seconds = time.perf_counter() - begin
    ready = [(folder / 'stopped' / key / 'features.npz').exists() for key in keys]
    with started(options.workdir, options.encoder, store) as (running, _), (
            running.client()) as client:
        states = [wait_for(client, key)['state'] for key in keys]
    return [dict(exit_code=code, seconds_to_stop=seconds, videos=len(keys),
                 ready_at_stop=sum(ready), ready_after_next_start=states.count('ready'))]


def main() -> None:
    options = common.arguments(__doc__, workdir='', encoder='', clients=50, seconds=30.0,
                               videos=4, video_seconds=150.0, output='')
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if not options.workdir:
            options.workdir, options.encoder = stand_ins(folder)
        content = make_video(folder / 'long.mp4', options.video_seconds)
        short = make_video(folder / 'short.mp4', SHORT)
        with started(options.workdir, options.encoder, str(folder / 'store'), '--queue=256') as (
                running, seconds), running.client() as client:
            begin = time.perf_counter()
            keys = [upload(client, another(content)) for _ in range(options.videos)]
            assert {wait_for(client, key)['state'] for key in keys} == {'ready'}
            encode = time.perf_counter() - begin
            start = [dict(start_seconds=seconds, encode_seconds=encode, videos=options.videos,
                          video_seconds=options.video_seconds, memory_mb=running.memory_mb())]
            single = latencies(client, keys[0])
            print(common.markdown(start), common.markdown(single), sep='\n', file=sys.stderr)
            rows, memory = load(running, keys, short, options.clients, options.seconds)
        stopped = stop_at_work(options, folder, content)
        shares = parts(options.workdir, options.encoder, round(options.video_seconds / 2))
    common.write(options.output, start=start, latency=single, parts=shares, load=rows,
                 memory=memory, stop=stopped)


if __name__ == '__main__':
    main()
