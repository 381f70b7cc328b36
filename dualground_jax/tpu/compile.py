"""Mode `compile`: what a train and a predict step need on a TPU slice, found without a TPU.

Both steps are compiled ahead of time from the shapes of state and batch: nothing is trained, no
data are read. See docs/scaling.md for how to read the numbers.
"""

import functools
import math
import re
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipelines import files
from data_pipelines.errors import ConfigError, UserError
from dualground_jax import predict, sharding, state, train
from dualground_jax.tpu import chips, hlo

# A compiler counts the body of a loop once; config.model's keys for loops -> without.
LOOPS = dict(scan_layers=False, attention_chunk=0)
# How libtpu says that a program is too large.
_NEEDED = re.compile(
    r'RESOURCE_EXHAUSTED.*?(?:required for HLO \w+ \(|Used )([\d.]+)([KMGT]?)(?:\)| of)', re.S)
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


def run(values, config: ConfigDict) -> dict:
    """Compiles both steps, prints a table of what they need and writes --output.

    Args:
        values: parsed flags: topology, output, largest_batch.
        config: whole config; its mesh is laid over the topology.

    Returns:
        What is in --output: the train step's `measure` beside the config's main values, `predict`
        and, if asked for, `largest_batch`.

    Raises:
        ConfigError: no topology, or a mesh or batch size that does not suit it.
        UserError: no such topology, or a step does not fit; then the report was written.
    """
    if not values.topology:
        raise ConfigError('--mode=compile needs --topology=KIND:SIZES, as in v5e:4x4')
    place = chips.parse(values.topology)
    if values.largest_batch and not place.chip:
        raise ConfigError(f'--largest_batch: --topology={place.name} has no limit')
    if config.data.resident:
        raise ConfigError('--mode=compile reads no data: compile with data.resident=false, and add '
                          'the size of the features, which training logs')
    mesh = sharding.make_mesh(config.mesh, place.devices(), config.mesh.runs)
    for section in ('train', 'evaluate'):
        sharding.check_batch_size(mesh, config[section].batch_size, f'{section}.batch_size')
    report = dict(
        topology=place.name, chips=mesh.size, mesh=dict(mesh.shape), model=config.model.name,
        dtype=config.model.dtype, matmul_precision=config.model.matmul_precision,
        batch_size=config.train.batch_size, **measure('train', config, mesh, place),
        predict=dict(batch_size=config.evaluate.batch_size,
                     **measure('predict', config, mesh, place)),
    )
    if values.largest_batch:
        report['largest_batch'] = largest_batch(config, mesh, place, report)
    print(table(report))
    if values.output:
        files.write_json(values.output, report)
        print(f'wrote {values.output}')
    for name, found in (('train', report), ('predict', report['predict'])):
        if not found['fits']:
            raise UserError(
                f'{place.name}: the {name} step of {found["batch_size"]} needs '
                f'{gib(found["hbm_bytes_per_chip"])} of HBM a chip, there is '
                f'{gib(found["hbm_limit_bytes"])}'
            )
    return report


# What a step needs ----------------------------------------------------------------------------


def make_step(name: str, config: ConfigDict, mesh) -> tuple[Callable, tuple]:
    """(the jitted 'train' or 'predict' step, the shapes and placement of its arguments)."""
    abstract = state.abstract_state(config, mesh)
    of_runs = functools.partial(state.of_runs, runs=config.mesh.runs)
    if name == 'predict':
        batch = state.abstract_batch(config, config.evaluate.batch_size, mesh)
        return predict.make_predict_step(config, mesh), (of_runs(abstract.eval_params), batch)
    batch = state.abstract_batch(config, config.train.batch_size, mesh)
    values = dict(seed=jax.ShapeDtypeStruct((), np.uint32, sharding=sharding.replicated(mesh)))
    return (train.make_train_step(config, mesh, 1, abstract),
            (of_runs(abstract), of_runs(batch), of_runs(values), {}))


def measure(name: str, config: ConfigDict, mesh, place: chips.Topology) -> dict:
    """Compiles a step.

    Returns:
        hbm_bytes_per_chip, hbm_limit_bytes (None on a CPU), fits and compile_seconds. Of a step
        that fits also the parts in `memory`; flops of the step and flops_per_chip; `collectives`,
        kind -> count and bytes of a step; `seconds`, the estimate (None on a CPU).
    """
    start = time.monotonic()
    step, arguments = make_step(name, config, mesh)
    platform = mesh.devices.flat[0].platform
    compiled, memory = None, {}
    try:
        compiled = step.trace(*arguments).lower(lowering_platforms=(platform,)).compile()
        needed, memory = memory_of(compiled)
    except jax.errors.JaxRuntimeError as error:
        if (needed := needed_bytes(str(error))) is None:
            raise
    limit = int(place.chip.hbm_bytes) if place.chip else None
    found = dict(
        hbm_bytes_per_chip=int(needed), hbm_limit_bytes=limit,
        fits=limit is None or needed <= limit,
        compile_seconds=round(time.monotonic() - start, 1),
    )
    if compiled is None:
        return found
    flops = compiled.cost_analysis()['flops']
    loops = {key: off for key, off in LOOPS.items()
             if key in config.model and config.model[key] != off}
    if loops:
        flops = unrolled_flops(name, config, loops) / mesh.size
    program = hlo.Program(compiled.as_text())
    collectives = hlo.collectives(program, mesh.size)
    passes = chips.PASSES[config.model.matmul_precision] if config.model.dtype == 'float32' else 1
    return found | dict(
        memory=memory, flops=flops * mesh.size, flops_per_chip=flops,
        collectives=summary(collectives),
        seconds=chips.estimate(flops * passes, program, collectives, place)
        if place.chip else None,
    )


def memory_of(compiled) -> tuple[int, dict[str, int]]:
    """Bytes that a compiled program needs on a device, and their parts; `alias` is donated."""
    memory = compiled.memory_analysis()
    parts = {name: getattr(memory, f'{name}_size_in_bytes')
             for name in ('argument', 'output', 'temp', 'alias')}
    return sum(parts.values()) - 2 * parts['alias'], parts


def needed_bytes(message: str) -> float | None:
    """The memory that an error of the compiler says is needed, or None if it is another error."""
    match = _NEEDED.search(message)
    return match and float(match[1]) * _UNITS[match[2]]


def unrolled_flops(name: str, config: ConfigDict, loops: dict) -> float:
    """FLOPs of a step on one device, before optimisation, with the loops written out."""
    flat = config.copy_and_resolve_references()
    with flat.unlocked():
        flat.model.update(loops)
        flat.mesh.runs = 1
    step, arguments = make_step(name, flat, sharding.one_device())
    return step.lower(*arguments).cost_analysis()['flops'] * config.mesh.runs


def summary(collectives: list[hlo.Collective]) -> dict[str, dict]:
    """Of each kind that there is: how many run, and their bytes."""
    found = {}
    for one in sorted(collectives, key=lambda one: hlo.KINDS.index(one.kind)):
        own = found.setdefault(one.kind, dict(count=0, bytes=0))
        own['count'] += one.times
        own['bytes'] += one.times * one.bytes
    return found


def largest_batch(config: ConfigDict, mesh, place: chips.Topology, first: dict) -> dict:
    """Searches the largest train batch, among powers of two a chip, that fits.

    Memory grows with the batch nearly in proportion, so that a guess from the first compilation is
    off by little; from there it walks until the next power does not fit. Nothing finer is tried: a
    compilation takes minutes.

    Args:
        config: whole config.
        mesh: of the topology.
        place: a TPU.
        first: the `measure` of `config` with its `batch_size`.

    Returns:
        batch_size (0: not even one row a chip fits), compilations and tried: batch size ->
        HBM bytes of a chip.
    """
    parts = sharding.batch_parts(mesh)
    tried = {first['batch_size']: first['hbm_bytes_per_chip']}

    def fits(power):
        size = parts * 2**power
        if size not in tried:
            own = config.copy_and_resolve_references()
            with own.unlocked():
                own.train.batch_size = size
            tried[size] = measure('train', own, mesh, place)['hbm_bytes_per_chip']
        return tried[size] <= place.chip.hbm_bytes

    rows = first['batch_size'] / parts * place.chip.hbm_bytes / first['hbm_bytes_per_chip']
    power = max(math.floor(math.log2(rows)), 0)
    while power >= 0 and not fits(power):
        power -= 1
    while power >= 0 and fits(power + 1):
        power += 1
    return dict(batch_size=parts * 2**power if power >= 0 else 0, compilations=len(tried),
                tried={str(size): tried[size] for size in sorted(tried)})


# The table ------------------------------------------------------------------------------------


def gib(count: float) -> str:
    """Bytes in a unit that suits them."""
    unit = next((u for u in 'TGMK' if count >= _UNITS[u]), '')
    return f'{count / _UNITS[unit]:.4g} {f"{unit}i" if unit else ""}B'


def table(report: dict) -> str:
    """Text of a report, under the names that its entries have there."""
    train = dict(_cells({name: value for name, value in report.items() if name != 'predict'}))
    predict = dict(_cells(report['predict']))
    lines = [('', 'train', 'predict')]
    lines += [(name, train.get(name, ''), predict.get(name, '')) for name in train | predict]
    return '\n'.join(f'{name:26} {left:>16} {right:>16}'.rstrip() for name, left, right in lines)


def _cells(part: dict, prefix: str = '') -> Iterator[tuple[str, str]]:
    """(name, text) of each entry."""
    for name, value in part.items():
        if isinstance(value, dict):
            yield from _cells(value, f'{name} ')
        elif 'bytes' in name or prefix in ('memory ', 'tried '):
            yield f'{prefix}{name}', gib(value) if value else '-'
        else:
            yield f'{prefix}{name}', f'{value:.4g}' if isinstance(value, float) else str(value)
