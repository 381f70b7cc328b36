"""What surrounds a job: processes, kept memory, compiled programs, what is said of them.

JAX is imported where it is needed: the mode `score` does without.
"""

import contextlib
import ctypes
import importlib.metadata
import io
import logging
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, TypeVar

from absl import logging as absl_logging
from absl.flags import FlagValues

from data_pipelines import progress
from data_pipelines.errors import ConfigError, one_line

T = TypeVar('T')


def prepare(values: FlagValues) -> None:
    """What comes before the first computation of a mode that trains or predicts.

    Args:
        values: parsed flags: workdir or output, coordinator, num_processes, process_id.

    Raises:
        ConfigError: as `join_processes`.
    """
    join_processes(values)
    keep_compiled(values.workdir or values.output)
    keep_memory()
    if not is_first():
        progress.silence()
        sys.stdout = open(os.devnull, 'w')


def quiet() -> None:
    """Lets libraries print warnings alone; what a stream cannot encode is printed as '?'."""
    root = logging.getLogger()
    root.removeHandler(absl_logging.get_absl_handler())
    root.addHandler(logging.lastResort)  # else the first log call puts one there that prints more
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='replace')


class Step:
    """A jitted step that is compiled once for arguments of some shapes, and tells of it.

    Args:
        step: takes the parameters or the state, a batch and more.
        name: as in 'train'.
    """

    def __init__(self, step: Callable, name: str):
        self._step, self._name = step, name
        self._programs: dict[tuple, Callable] = {}
        self._coming: dict[tuple, Future] = {}

    def prepare(self, compilers: Executor, state: Any, batch: dict, *rest) -> None:
        """Has a thread compile it for arguments of these shapes and placements.

        One of several processes leaves that to the first use: on GPUs they tune programs together.
        """
        import jax

        key = _shapes(state, batch, *rest)

        def compiled() -> tuple[Callable, float]:
            start = time.monotonic()
            return self._step.lower(state, batch, *rest).compile(), time.monotonic() - start

        if key not in self._programs | self._coming and jax.process_count() == 1:
            self._coming[key] = compilers.submit(compiled)
            self._coming[key].add_done_callback(
                lambda future: future.cancelled() and self._coming.pop(key, None))

    def __call__(self, state, batch, *rest):
        key = _shapes(state, batch, *rest)
        if key in self._programs:
            return self._programs[key](state, batch, *rest)
        coming, work = self._coming.pop(key, None), f'compiling the {self._name} step'
        if coming and coming.done():
            self._programs[key], seconds = coming.result()
            progress.say(f'{work}: {seconds:.1f} s')
            return self._programs[key](state, batch, *rest)
        with progress.timed(work):
            self._programs[key] = coming.result()[0] if coming else self._step
            return self._programs[key](state, batch, *rest)


def _shapes(*arguments: Any) -> tuple:
    import jax

    leaves, structure = jax.tree.flatten(arguments)
    return structure, tuple(leaf.shape for leaf in leaves)


@contextlib.contextmanager
def compilers() -> Iterator[Executor]:
    """Threads that compile, one for each CPU; in the end what was not begun is left out."""
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """Makes each item while the one before it is used: devices work while the next batch comes."""
    previous = next(items, None)
    for item in items:
        yield previous
        previous = item
    if previous is not None:
        yield previous


def join_processes(values: FlagValues) -> None:
    """Connects this process with the others that the flags speak of; without flags does nothing.

    Call it before anything else of JAX.

    Raises:
        ConfigError: half-given flags, or processes that could not be found.
    """
    import jax

    own = values.num_processes, values.process_id
    if values.coordinator is None:
        if own != (None, None):
            raise ConfigError('--num_processes and --process_id need --coordinator=HOST:PORT')
        return
    if values.coordinator == 'auto':
        arguments = {}
    elif None in own:
        raise ConfigError(f'--coordinator={values.coordinator} needs --num_processes and '
                          '--process_id')
    else:
        arguments = dict(coordinator_address=values.coordinator, num_processes=own[0],
                         process_id=own[1])
    try:
        jax.distributed.initialize(**arguments)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f'--coordinator={values.coordinator}: {error}') from error


def leave_others(error: RuntimeError) -> None:
    """Ends one of several processes whose devices can't go on, as where another one was killed.

    At once and with one line: JAX would wait for the lost one for minutes, then abort.
    """
    import jax

    if isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
        print(f'error: process {jax.process_index()} of {jax.process_count()}: '
              f'{one_line(error)[:300]}; if another process is lost, start all of them again: they '
              'go on from the last checkpoint', file=sys.stderr, flush=True)
        os._exit(1)


def is_first() -> bool:
    """Whether this process writes what all of them found."""
    import jax

    return jax.process_index() == 0


def first_alone(make: Callable[[], object]) -> None:
    """Calls `make` in the first process while the others wait for it, then in these."""
    import jax
    from jax.experimental import multihost_utils

    if is_first():
        make()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices('first_alone')
        if not is_first():
            make()


def keep_memory() -> None:
    """On CPUs lets the process keep the memory that it frees.

    XLA allocates a step's buffers anew each time; where glibc takes them from the system and gives
    them back, a third of a large step's time goes into mapping pages. Call it before JAX starts its
    threads: one that has an arena of its own gets large blocks from the system whatever the
    options say. Does nothing with another C library.
    """
    import jax

    try:
        mallopt = ctypes.CDLL('libc.so.6').mallopt
    except (OSError, AttributeError):
        return
    _set_options(mallopt, mmap_max=0, trim_threshold=-1, arena_max=1)
    if jax.default_backend() != 'cpu':
        _set_options(mallopt, mmap_max=2**16, trim_threshold=2**17, arena_max=0)  # the defaults


def _set_options(mallopt: Callable, *, mmap_max: int, trim_threshold: int, arena_max: int) -> None:
    for option, value in ((-4, mmap_max), (-1, trim_threshold), (-8, arena_max)):
        mallopt(option, value)


def keep_compiled(workdir: str) -> None:
    """Keeps compiled programs in a folder, unless $JAX_COMPILATION_CACHE_DIR says where.

    A resumed run, the next seed of a sweep and an evaluation then start without compiling. Beside
    a published model nothing is written: its programs are kept in the user's cache.
    """
    if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        import jax

        folder = pathlib.Path(workdir).absolute()
        if (folder / 'model.safetensors').exists():
            folder = user_cache()
        folder /= 'compiled'
        jax.config.update('jax_compilation_cache_dir', str(folder))


def user_cache() -> pathlib.Path:
    """Folder for what is kept where nothing may be written beside a model."""
    cache = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    return pathlib.Path(cache, 'dualground_jax')


def versions() -> dict[str, str]:
    """Versions of the libraries that numbers depend on."""
    names = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
    return {name: importlib.metadata.version(name) for name in names}
