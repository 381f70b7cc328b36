"""What surrounds a job: one process or several, and the cache of compiled programs.

JAX is imported where it is needed: the mode `score` does without.
"""

import ctypes
import os
import pathlib
from collections.abc import Callable

from absl import flags

from data_pipelines.errors import ConfigError


def define_flags() -> None:
    """The flags by which several processes find each other."""
    flags.DEFINE_string(
        'coordinator', None,
        "several processes: HOST:PORT of the first one, or 'auto' on TPU pods, Slurm and Open MPI",
    )
    flags.DEFINE_integer('num_processes', None, 'with --coordinator=HOST:PORT: how many')
    flags.DEFINE_integer('process_id', None, 'with --coordinator=HOST:PORT: which one, from 0 on')


def join_processes(values) -> None:
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
    """Keeps compiled programs in the workdir, unless $JAX_COMPILATION_CACHE_DIR says where.

    A resumed run, the next seed of a sweep and an evaluation then start without compiling.
    """
    if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        import jax

        folder = pathlib.Path(workdir).absolute() / 'compiled'
        jax.config.update('jax_compilation_cache_dir', str(folder))
