"""Mode `compile`: what a train and a predict step need on a TPU slice, found without a TPU.

Both steps are compiled ahead of time from the shapes of state and batch: nothing is trained, no
data are read. See docs/scaling.md for how to read the numbers.
"""

import math
import re
import time
from collections.abc import Callable

from absl import flags
from ml_collections import ConfigDict

from data_pipelines import files
from data_pipelines.errors import ConfigError, UserError
from dualground_jax.tpu import chips, hlo

# A compiler counts the body of a loop once; config.model's keys for loops -> without.
LOOPS = dict(scan_layers=False, attention_chunk=0)
# How libtpu says that a program is too large.
_NEEDED = re.compile(r'required for HLO \w+ \(([\d.]+)([KMGT]?)\)|Used ([\d.]+)([KMGT]?) of')
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


class DoesNotFitError(UserError):
    """A step needs more memory than a chip has."""


def define_flags() -> None:
    """Defines the flags of the mode; the caller parses them. It also reads --output."""
    flags.DEFINE_string('topology', None, 'compile: TPU slice, v5e:4x4, v4:4x4x4, ..., or cpu:8')
    flags.DEFINE_boolean('largest_batch', False, 'compile: also search the largest power of two '
                         'a chip that train.batch_size can be; takes a few compilations')


def run(config: ConfigDict, topology: str | None, output: str | None, largest: bool) -> dict:
    """Compiles both steps, prints a table of what they need and writes `output`.

    Args:
      config: whole config; its mesh is laid over the topology.
      topology: as of `tpu.parse`.
      output: json file, or None.
      largest: whether to search the largest batch of training.

    Returns:
      What is in `output`: the train step's `measure` beside the config's main values, `predict`
      and, if asked for, `largest_batch`.

    Raises:
      ConfigError: no topology, or a mesh or batch size that does not suit it.
      DoesNotFitError: a step does not fit; the report was written.
    """
    from dualground_jax import sharding  # slow to import

    if not topology:
        raise ConfigError('--mode=compile needs --topology=KIND:SIZES, as in v5e:4x4')
    place = chips.parse(topology)
    if config.data.resident:
        raise ConfigError('--mode=compile reads no data: compile with data.resident=false, and add '
                          'the size of the features, which training logs')
    mesh = sharding.make_mesh(config.mesh, place.devices())
    for section in ('train', 'evaluate'):
        sharding.check_batch_size(mesh, config[section].batch_size, f'{section}.batch_size')
    report = dict(
        topology=place.name, chips=mesh.size, mesh=dict(mesh.shape), model=config.model.name,
        batch_size=config.train.batch_size, **measure('train', config, mesh, place),
        predict=dict(batch_size=config.evaluate.batch_size,
                     **measure('predict', config, mesh, place)),
    )
    if largest:
        report['largest_batch'] = largest_batch(config, mesh, place, report)
    print(table(report))
    if output:
        files.write_json(output, report)
        print(f'wrote {output}')
    for name, found in (('train', report), ('predict', report['predict'])):
        if not found['fits']:
            raise DoesNotFitError(
                f'{place.name}: the {name} step of {found["batch_size"]} needs '
                f'{gib(found["hbm_bytes_per_chip"])} of HBM a chip, there is '
                f'{gib(found["hbm_limit_bytes"])}'
            )
    return report


# What a step needs ----------------------------------------------------------------------------


def make_step(name: str, config: ConfigDict, mesh) -> tuple[Callable, tuple]:
    """(the jitted 'train' or 'predict' step, the shapes and placement of its arguments)."""
    import jax
    import numpy as np

    from dualground_jax import evaluate, state, train

    abstract = state.abstract_state(config, mesh)
    if name == 'predict':
        batch = state.abstract_batch(config, config.evaluate.batch_size, mesh)
        return evaluate.make_predict_step(config, mesh), (abstract.eval_params, batch)
    batch = state.abstract_batch(config, config.train.batch_size, mesh)
    tx = state.make_optimizer(config.optimizer, total_steps=1)
    seed = jax.ShapeDtypeStruct((), np.uint32)
    return train.make_train_step(config, mesh, tx, abstract), (abstract, batch, seed, {})


def measure(name: str, config: ConfigDict, mesh, topology: chips.Topology) -> dict:
    """Compiles a step.

    Returns:
      hbm_bytes_per_chip and its parts in `memory`, hbm_limit_bytes and fits; flops of the step and
      flops_per_chip; `collectives`, kind -> count and bytes of a step, and the names of those in
      loops of unknown length; `seconds`, the estimate (both None on a CPU, as is the limit);
      compile_seconds. Of a step that does not fit there is the memory alone.
    """
    import jax

    start = time.monotonic()
    step, arguments = make_step(name, config, mesh)
    platform = mesh.devices.flat[0].platform
    try:
        lowered = step.trace(*arguments).lower(lowering_platforms=(platform,))
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if (needed := needed_bytes(str(error))) is None:
            raise
        return entry(needed, topology, start)
    memory = compiled.memory_analysis()
    parts = dict(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
    )
    needed = parts['arguments'] + parts['outputs'] + parts['temporaries'] - parts['aliased']
    found = entry(needed, topology, start)
    flops = compiled.cost_analysis()['flops']
    unrolled = {key: off for key, off in LOOPS.items()
                if key in config.model and config.model[key] != off}
    if unrolled:
        flops = unrolled_flops(name, config, unrolled) / mesh.size
    program = hlo.Program(compiled.as_text())
    listed = hlo.collectives(program, mesh.size)
    return found | dict(
        memory=parts,
        flops=flops * mesh.size,
        flops_per_chip=flops,
        collectives=summary(listed),
        collectives_in_loops_of_unknown_length=[one.name for one in listed if one.endless],
        seconds=chips.estimate(flops, program, listed, topology) if topology.chip else None,
    )


def entry(needed: float, topology: chips.Topology, start: float) -> dict:
    """What `measure` tells of a step of which only the memory is known."""
    limit = topology.chip.hbm_bytes if topology.chip else None
    return dict(
        hbm_bytes_per_chip=int(needed), hbm_limit_bytes=limit and int(limit),
        fits=limit is None or needed <= limit, memory=None, flops=None, flops_per_chip=None,
        collectives=None, collectives_in_loops_of_unknown_length=None, seconds=None,
        compile_seconds=round(time.monotonic() - start, 1),
    )


def needed_bytes(message: str) -> float | None:
    """The memory that an error of the compiler says is needed, or None if it is another error."""
    if 'RESOURCE_EXHAUSTED' not in message or not (match := _NEEDED.search(message)):
        return None
    number, unit = match.groups()[:2] if match[1] else match.groups()[2:]
    return float(number) * _UNITS[unit]


def unrolled_flops(name: str, config: ConfigDict, unrolled: dict) -> float:
    """FLOPs of a step on one device, before optimisation, with the loops written out."""
    from dualground_jax import sharding

    flat = config.copy_and_resolve_references()
    with flat.unlocked():
        flat.model.update(unrolled)
    step, arguments = make_step(name, flat, sharding.one_device())
    return step.lower(*arguments).cost_analysis()['flops']


def summary(listed: list[hlo.Collective]) -> dict[str, dict]:
    """Kind -> how many run in a step, and bytes of them all."""
    found = {}
    for kind in hlo.KINDS:
        if own := [one for one in listed if one.kind == kind]:
            found[kind] = dict(count=sum(one.times for one in own),
                               bytes=sum(one.times * one.bytes for one in own))
    return found


# The largest batch ----------------------------------------------------------------------------


def largest_batch(config: ConfigDict, mesh, topology: chips.Topology, first: dict) -> dict:
    """Searches the largest train batch, among powers of two a chip, that fits.

    Memory grows with the batch nearly in proportion, so that a guess from the first compilation is
    off by little; from there it walks until the next power does not fit. Nothing finer is tried: a
    compilation takes minutes.

    Args:
      config: whole config.
      mesh: of the topology.
      topology: of a TPU.
      first: the `measure` of `config` with its `batch_size`.

    Returns:
      batch_size (0: not even one row a chip fits), compilations and tried: batch size ->
      HBM bytes of a chip.
    """
    if topology.chip is None:
        raise ConfigError(f'--largest_batch: --topology={topology.name} has no limit')
    parts = mesh.shape['data'] * mesh.shape['fsdp']
    tried = {first['batch_size']: first['hbm_bytes_per_chip']}

    def fits(power):
        size = parts * 2**power
        if size not in tried:
            own = config.copy_and_resolve_references()
            with own.unlocked():
                own.train.batch_size = size
            tried[size] = measure('train', own, mesh, topology)['hbm_bytes_per_chip']
        return tried[size] <= topology.chip.hbm_bytes

    rows_a_chip = first['batch_size'] / parts
    room = topology.chip.hbm_bytes / first['hbm_bytes_per_chip']
    power = max(math.floor(math.log2(rows_a_chip * room)), 0)
    if fits(power):
        while fits(power + 1):
            power += 1
    else:
        while power >= 0 and not fits(power):
            power -= 1
    return dict(batch_size=parts * 2**power if power >= 0 else 0, compilations=len(tried),
                tried={size: tried[size] for size in sorted(tried)})


# The table ------------------------------------------------------------------------------------


def gib(count: float) -> str:
    """Bytes in a unit that suits them."""
    unit = next((u for u in 'TGMK' if count >= _UNITS[u]), '')
    return f'{count / _UNITS[unit]:.4g} {f"{unit}i" if unit else ""}B'


def table(report: dict) -> str:
    """Text of a report."""
    steps = [report, report['predict']]
    mesh = ', '.join(f'{axis} {size}' for axis, size in report['mesh'].items())
    text = [f'{report["model"]} on {report["topology"]}: {report["chips"]} chips ({mesh})']
    if report['hbm_limit_bytes']:
        text[0] += f' with {gib(report["hbm_limit_bytes"])} of HBM each'
    columns = [_cells(step) for step in steps]
    titles = [title for title in max(columns, key=len)
              if any(column.get(title) for column in columns)]
    lines = [['', 'train', 'predict']]
    lines += [[title, *(column.get(title, '') for column in columns)] for title in titles]
    widths = [max(map(len, column)) for column in zip(*lines)]
    text += ['  '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
             for row in lines]
    for step in steps:
        if step['collectives_in_loops_of_unknown_length']:
            text.append('in loops of unknown length, counted once: '
                        + ', '.join(step['collectives_in_loops_of_unknown_length']))
    if 'largest_batch' in report:
        found = report['largest_batch']
        tried = ', '.join(f'{size}: {gib(need)}' for size, need in found['tried'].items())
        text.append(f'largest train batch {found["batch_size"]}, from {found["compilations"]} '
                    f'compilations ({tried})')
    return '\n'.join(text)


def _cells(step: dict) -> dict[str, str]:
    """A column: title -> text."""
    cells = {'batch size': str(step['batch_size']),
             'HBM of a chip': gib(step['hbm_bytes_per_chip'])}
    if step['fits']:
        cells |= {f'  {part}': gib(size) for part, size in step['memory'].items()}
        cells |= {'FLOPs': f'{step["flops"]:.4g}', '  of a chip': f'{step["flops_per_chip"]:.4g}'}
        moved = step['collectives']
        cells |= {kind: f'{moved[kind]["count"]}, {gib(moved[kind]["bytes"])}'
                  if kind in moved else '' for kind in hlo.KINDS}
    if step['seconds']:
        cells |= {f'{part}, ms': f'{1e3 * step["seconds"][part]:.4g}'
                  for part in ('compute', 'hbm', 'interconnect', 'step', 'scheduled')}
        cells['limited by'] = step['seconds']['limit']
    return cells | {'compilation, s': str(step['compile_seconds'])}
