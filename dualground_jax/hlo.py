"""Reads the collectives out of the text of a compiled, partitioned XLA program."""

import math
import re
from dataclasses import dataclass

KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')

_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\{$')
# The second half of an asynchronous pair, `-done`, moves nothing.
_COLLECTIVE = re.compile(rf'%?([\w.\-]+) = (.+?) ({"|".join(KINDS)})(-start)?\(')
_ARRAY = re.compile(r'\b(?:pred|[a-z]+(\d+)\w*)\[([\d,<=]*)\]')
_CALLS = re.compile(
    r'\b(calls|to_apply|body|condition|true_computation|false_computation|branch_computations)='
    r'\{?((?:%?[\w.\-]+(?:, %)?)+)'
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BOUND = re.compile(r' = [su]\d+\[\]\S* constant\((\d+)\)')


@dataclass(frozen=True)
class Collective:
    """One collective.

    Attributes:
      kind: of `KINDS`.
      name: of the instruction.
      bytes: of the whole array that is reduced, gathered or scattered among a group; in an
        all-to-all and a collective-permute of what each device brings.
      group: devices in a group.
      times: how often it runs; in a loop of unknown length it is counted once.
      endless: whether it is in a loop of unknown length.
    """

    kind: str
    name: str
    bytes: int
    group: int
    times: int
    endless: bool


def collectives(text: str, devices: int) -> list[Collective]:
    """Finds all collectives that the program runs.

    What a compiler splits over several instructions (start, the computation beside it, done) has
    one channel and counts once. A reduction of which each device keeps a part is a reduce-scatter
    also where it is spelt as an all-reduce and a slice in a fusion.

    Args:
      text: of the optimised module: `compiled.as_text()`.
      devices: that the program runs on.
    """
    entry, computations = _split(text)
    found = {}

    def walk(name, times, endless):
        for line in computations[name]:
            if match := _COLLECTIVE.search(line):
                one = _collective(match, line, name, devices, times, endless)
                channel = re.search(r'\bchannel_id=(\d+)', line)
                found.setdefault(channel[1] if channel else (name, one.name), one)
            trips = _trips(line, computations) if ' while(' in line else 1
            for called in _called(line):
                walk(called, times * (trips or 1), endless or trips is None)

    walk(entry, 1, False)
    return list(found.values())


def _split(text: str) -> tuple[str, dict[str, list[str]]]:
    """(name of the entry, computation -> its instructions)."""
    entry, computations, lines = None, {}, []
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            lines = computations.setdefault(match[2], [])
            if match[1]:
                entry = match[2]
        elif line.startswith(' '):
            lines.append(line)
    return entry, computations


def _called(line: str) -> list[str]:
    """Computations that an instruction runs; what reduces two elements is among them."""
    return [name.strip('%') for _, names in _CALLS.findall(line) for name in names.split(', ')]


def _trips(line: str, computations: dict[str, list[str]]) -> int | None:
    """How often the body of a `while` runs, or None.

    The compiler's own note of it, or else the bound of a condition that compares a counter with
    a constant, as `lax.scan` and `lax.fori_loop` make it.
    """
    if match := _TRIPS.search(line):
        return int(match[1])
    condition = computations[re.search(r'condition=%?([\w.\-]+)', line)[1]]
    bounds = [int(match[1]) for match in map(_BOUND.search, condition) if match]
    counts = any('ROOT' in each and 'direction=LT' in each for each in condition)
    return bounds[0] if counts and len(bounds) == 1 else None


def _collective(match, line, computation, devices, times, endless) -> Collective:
    name, shape, kind, started = match.groups()
    sizes = [_bytes(*array) for array in _ARRAY.findall(shape)]
    if started and kind != 'all-reduce':
        # (operands, results, scalars of the runtime)
        sizes = [size for size, (_, axes) in zip(sizes, _ARRAY.findall(shape)) if axes]
        sizes = sizes[len(sizes) // 2:]
    group = _group(line, devices)
    if kind == 'all-reduce' and computation.startswith('all-reduce-scatter'):
        kind = 'reduce-scatter'
    elif kind == 'reduce-scatter':
        sizes.append(sum(sizes) * (group - 1))
    return Collective(kind, name, sum(sizes), group, times, endless)


def _bytes(bits: str, axes: str) -> int:
    count = math.prod(int(axis.strip('<=')) for axis in axes.split(',')) if axes else 1
    return math.ceil(count * int(bits or 8) / 8)


def _group(line: str, devices: int) -> int:
    """Devices in each group; without groups, and in a collective-permute, all."""
    if match := re.search(r'replica_groups=\{\{([\d,]+)\}', line):
        return match[1].count(',') + 1
    if match := re.search(r'replica_groups=\[\d+,(\d+)\]', line):
        return int(match[1])
    if match := re.search(r'replica_groups=mesh\[(.*?)\] ?\{(.*?)\}', line):
        sizes = dict(re.findall(r"'?([\w.\-]+)'?=(\d+)", match[1]))
        axes = re.findall(r"'?([\w.\-]+)'?(?::\(\d+\)(\d+))?(?:, |$)", match[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return devices
