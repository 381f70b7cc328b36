"""From the command to the first step, without and with kept programs.

    python -m benchmarks.startup [--models dualground,flash_vtg] [--output FILE.json]

Each run is a process that trains one step on the generated world, with the models of
configs/synthetic.py, as they are and with `model.scan_layers`, and evaluates. The first of a pair
finds no compiled programs, the second those that it left.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks import common
from dualground_jax import config, models, worlds

VARIANTS = {'': [], 'scan_layers': ['--config.model.scan_layers=True']}


def seconds_of(source: str, workdir: pathlib.Path, cache: str, flags: list[str]) -> dict:
    """Of a run: to its first step, to its end."""
    start, first = time.perf_counter(), None
    process = subprocess.Popen(
        [sys.executable, '-m', 'dualground_jax.main', f'--config={source}', f'--workdir={workdir}',
         '--config.train.max_steps=1', '--config.evaluate.pictures=0', *flags],
        env=dict(os.environ, JAX_COMPILATION_CACHE_DIR=cache),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    with process:
        while process.poll() is None:
            metrics = workdir / 'metrics.jsonl'
            if first is None and metrics.exists() and metrics.stat().st_size:
                first = time.perf_counter() - start
            time.sleep(0.02)
        if process.returncode:
            raise SystemExit(process.stderr.read().decode())
    return dict(first_step_s=first, run_s=time.perf_counter() - start)


def main() -> None:
    args = common.arguments(__doc__, models=','.join(models.MODELS), output='')
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        source = f'configs/synthetic.py:root={folder}/data,model='
        worlds.prepare(config.load_config(source + 'dualground'))
        for model in args.models.split(','):
            for variant, flags in VARIANTS.items():
                cache, row = tempfile.mkdtemp(dir=folder), dict(model=model, variant=variant)
                for kept in ('cold', 'warm'):
                    found = seconds_of(source + model, pathlib.Path(cache, kept), cache, flags)
                    row |= {f'{kept}_{name}': value for name, value in found.items()}
                rows.append(row)
                print(row, file=sys.stderr, flush=True)
    common.write(args.output, startup=rows)


if __name__ == '__main__':
    main()
