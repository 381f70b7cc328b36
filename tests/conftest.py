"""Set before jax is imported: the CPU, two of them, fast compilation and a cache of it."""

import gc
import importlib.metadata
import os
import pathlib
import tempfile

import pytest

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Unoptimised code compiles several times faster; sizes in the tests are tiny.
_FLAGS = ['--xla_backend_optimization_level=0', '--xla_cpu_parallel_codegen_split_count=1',
          '--xla_force_host_platform_device_count=2']
# The older code generator compiles three times faster. A jaxlib without it would refuse the flag.
if importlib.metadata.version('jaxlib').startswith('0.10.'):
    _FLAGS.append('--xla_cpu_use_fusion_emitters=false')
os.environ['XLA_FLAGS'] = ' '.join([os.environ.get('XLA_FLAGS', ''), *_FLAGS])
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:  # workers inherit that of the first process
    _CACHE = tempfile.TemporaryDirectory(prefix='compiled')
    os.environ['JAX_COMPILATION_CACHE_DIR'] = _CACHE.name
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
gc.set_threshold(100_000, 50, 50)  # tracing makes many objects that live on

# Longest first: else one worker ends with them while the other one waits.
LONGEST = (
    'train_test', 'model_test', 'cg_detr_parity_test', 'tr_detr_parity_test', 'processes_test',
    'dualground_oracle_test', 'checkpoint_test', 'study_test', 'page_test', 'execution_test',
    'five_sets_test', 'flash_vtg_parity_test', 'mesh_test', 'analyse_test', 'attention_test',
    'targets_test', 'highlight_sets_test', 'own_data_test', 'losses_test', 'sweep_test',
    'compile_test', 'pretrained_test',
)


def pytest_configure(config):
    """Has pytest-xdist hand out files in this order, not by their numbers of tests."""
    if hasattr(config.option, 'loadscopereorder'):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Sorts files: first the longest ones."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(scope='module', autouse=True)
def few_mappings():
    """Lets go of compiled programs before they use up the 65530 mappings that a process may have.

    One has up to 2000 of them. Without the older code generator the suite would get there: JAX ends
    the process when it writes the next one to its cache.
    """
    import jax  # after the settings above

    yield
    maps = pathlib.Path('/proc/self/maps')
    if maps.exists() and len(maps.read_bytes().splitlines()) > 20_000:
        jax.clear_caches()
        gc.collect()
