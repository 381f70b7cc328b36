"""Where the time of a train step goes, as the JAX profiler sees it.

    python -m benchmarks.profile [--models flash_vtg] [--steps 3] [--top 20] [--output FILE.json]

Operations of the compiled program are summed by what they do and by the module they come from.
Several run at a time on a CPU, so that their seconds add up to more than those of the step.
"""

import argparse
import collections
import pathlib
import re
import tempfile

import jax

from benchmarks import common
from dualground_jax import runtime

_COMPUTATION = re.compile(r'(?:ENTRY )?%?([\w.\-]+) \(.*\{$')
_OPERATION = re.compile(r'\s*(?:ROOT )?%?([\w.\-]+) = (\S+).*? ([a-z][\w\-]*)\(')
_NAME = re.compile(r'op_name="([^"]*)"')
_CALLS = re.compile(r'calls=%?([\w.\-]+)')

# What an operation does: the first entry whose pattern is in its kinds or its name.
WORK = {
    'matrix products': r'\bdot\b|dot_general|->',
    'convolutions': r'convolution|conv_general_dilated',
    'dropout': r'dropout|threefry|random_bits',
    'normalisation': r'norm',
    'copies and transposes': r'^(copy|transpose)\b',
    'attention': r'attention',
    'other': r'',
}


def operations(text: str) -> dict[str, tuple[str, str, str]]:
    """Operations of a compiled program's text: name -> (shape, kinds of work in it, op_name)."""
    inner, found, computation = collections.defaultdict(set), {}, ''
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            computation = start[1]
        elif operation := _OPERATION.match(line):
            name, shape, kind = operation.groups()
            inner[computation].add(kind)
            source, calls = _NAME.search(line), _CALLS.search(line)
            found[name] = (shape, kind, source[1] if source else '', calls and calls[1])
    return {
        name: (shape, ' '.join([kind, *sorted(inner[calls] if calls else ())]), source)
        for name, (shape, kind, source, calls) in found.items()
    }


def work_of(kinds: str, source: str) -> str:
    """The entry of `WORK` that an operation belongs to."""
    text = f'{kinds} {source.lower()}'
    # A fusion that only moves data is named after the operation that it feeds.
    if kinds.startswith('fusion') and set(kinds.split()) <= {
        'fusion', 'parameter', 'bitcast', 'copy', 'transpose'
    }:
        return 'copies and transposes'
    return next(name for name, pattern in WORK.items() if re.search(pattern, text))


def module_of(source: str) -> str:
    """Module and direction of an op_name such as jit(train_step)/jvp(Model)/encoder/.../dot."""
    direction = 'backward' if 'transpose(' in source else 'forward'
    parts = re.sub(r'(transpose|jvp|jit|vmap|checkpoint|rematted_computation)\(?|\)', '', source)
    if 'Model' not in parts:
        return 'losses, optimiser'
    parts = parts.split('Model/', 1)[-1].split('/')
    return f'{"/".join(parts[: min(2, len(parts) - 1)]) or "model"}, {direction}'


def trace(call, steps: int) -> collections.Counter:
    """Seconds per step of each operation by name."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                call()
        file, = pathlib.Path(folder).rglob('*.xplane.pb')
        data = jax.profiler.ProfileData.from_file(str(file))
    seconds = collections.Counter()
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                name = dict(event.stats).get('hlo_op')
                if name:
                    seconds[name] += event.duration_ns / 1e9 / steps
    return seconds


def table(seconds: collections.Counter, group, top: int | None = None) -> list[dict]:
    """Rows of the largest groups: seconds, share of all and number of operations."""
    total, count = collections.Counter(), collections.Counter()
    for name, value in seconds.items():
        total[group(name)] += value
        count[group(name)] += 1
    everything = sum(total.values())
    return [dict(name=name, seconds=value, share=value / everything, operations=count[name])
            for name, value in total.most_common(top)]


def profile(model: str, steps: int, top: int) -> dict[str, list[dict]]:
    """Tables of a model's train step."""
    program = common.train_program(model, common.make_config(model))
    program.call()
    seconds = trace(program.call, steps)
    known = operations(program.executable.as_text())
    of = lambda name: known.get(name, ('', 'outside the program', ''))  # noqa: E731
    return {
        f'{model}: work': table(seconds, lambda name: work_of(*of(name)[1:])),
        f'{model}: modules': table(seconds, lambda name: module_of(of(name)[2]), top),
        f'{model}: operations': table(
            seconds, lambda name: f'{name} {of(name)[0]} {of(name)[2][-60:]}', top),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--models', default='flash_vtg')
    parser.add_argument('--steps', type=int, default=3)
    parser.add_argument('--top', type=int, default=20)
    parser.add_argument('--output')
    args = parser.parse_args()
    runtime.keep_memory()
    report = {}
    for model in args.models.split(','):
        report |= profile(model, args.steps, args.top)
    common.write(args.output, **report)


if __name__ == '__main__':
    main()
