"""Packaging of dualground_jax."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VIDEO = ['av>=16', 'ftfy']
SERVE = [*VIDEO, 'prometheus-client', 'starlette>=1', 'uvicorn']

setup(
    name='dualground_jax',
    version=re.search("__version__ = '(.+)'", (HERE / 'dualground_jax/__init__.py').read_text())[1],
    description='Video temporal grounding in JAX/Flax: DualGround and the models that it analyses',
    long_description=(HERE / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['dualground_jax*', 'configs*', 'data_pipelines*']),
    entry_points={'console_scripts': ['dualground = dualground_jax.main:start']},
    package_data={
        'data_pipelines': ['citations.bib'],
        'dualground_jax': ['demo/**/*'],
        'dualground_jax.serve': ['static/**/*'],
    },
    python_requires='>=3.11',
    install_requires=[
        'absl-py',
        'clu',
        'flax>=0.12',
        'importlib_resources',  # tensorflow-datasets imports it without saying so
        'jax>=0.10',
        'matplotlib',
        'ml_collections',
        'numpy>=2.0',
        'optax>=0.2.8',
        'orbax-checkpoint>=0.12',
        'rich>=13',
        'scipy',
        'tensorboard',  # clu writes its events; tensorflow no longer brings it
        # The CPU build: TensorFlow only feeds data here, accelerators belong to JAX.
        'tensorflow-cpu; platform_system != "Darwin"',
        'tensorflow; platform_system == "Darwin"',
        'tensorflow-datasets>=4.9.10',  # brings array_record where that is released
        'transformers',  # brings huggingface-hub, regex, safetensors, tokenizers
    ],
    extras_require={
        'test': [*SERVE, 'h5py', 'httpx2', 'hypothesis', 'imageio-ffmpeg', 'import-linter',
                 'jsonschema', 'playwright', 'pytest', 'pytest-xdist', 'ruff',
                 'setuptools>=70.1'],
        'beam': ['apache-beam'],
        'cuda': ['jax[cuda12]'],
        'hdf5': ['h5py'],
        'hub': ['huggingface_hub'],
        'serve': SERVE,
        'tpu': ['jax[tpu]'],
        'torch': ['torch'],
        'video': VIDEO,
    },
)
