"""Set before jax is imported: the CPU, two of them, fast compilation and a cache of it."""

import importlib.metadata
import os
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Unoptimised code compiles several times faster; sizes in the tests are tiny.
_FLAGS = ['--xla_backend_optimization_level=0', '--xla_force_host_platform_device_count=2']
# The older code generator compiles three times faster. A jaxlib without it would refuse the flag.
if importlib.metadata.version('jaxlib').startswith('0.10.'):
    _FLAGS.append('--xla_cpu_use_fusion_emitters=false')
os.environ['XLA_FLAGS'] = ' '.join([os.environ.get('XLA_FLAGS', ''), *_FLAGS])
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:  # workers inherit that of the first process
    _CACHE = tempfile.TemporaryDirectory(prefix='compiled')
    os.environ['JAX_COMPILATION_CACHE_DIR'] = _CACHE.name
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
