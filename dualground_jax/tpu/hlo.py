"""Reads the text of a compiled, partitioned XLA program: collectives, memory traffic, cycles."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')

_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)')
# Element type, its bits, sizes, and where in its layout a memory other than the HBM is named.
_ARRAY = re.compile(r'\b(?:pred|[a-z]+(\d+)\w*)\[([\d,<=]*)\](?:\{[^}]*?(S\(\d+\))?\})?')
_CALLS = re.compile(
    r'\b(calls|to_apply|body|condition|true_computation|false_computation|branch_computations)='
    r'\{?((?:%?[\w.\-]+(?:, %)?)+)'
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BOUND = re.compile(r' = [su]\d+\[\]\S* constant\((\d+)\)')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# What names data without touching them, or leaves that to others.
_FREE = {'parameter', 'get-tuple-element', 'tuple', 'bitcast', 'constant', 'while', 'conditional',
         'call', 'after-all', 'partition-id'}


@dataclass(frozen=True)
class Instruction:
    """One instruction of a program that runs.

    Attributes:
      name: its own.
      kind: 'add', 'fusion', ...
      shape: of the result, as text.
      rest: operands and attributes, as text.
      computation: name of the one that it is in.
      times: how often it runs; in a loop of unknown length it is counted once.
      endless: whether it is in a loop of unknown length.
      fused: whether it is a part of another one, inside of which nothing reaches the HBM.
    """

    name: str
    kind: str
    shape: str
    rest: str
    computation: str
    times: int
    endless: bool
    fused: bool


@dataclass(frozen=True)
class Collective:
    """One collective.

    Attributes:
      kind: of `KINDS`.
      name: of the instruction.
      bytes: of the whole array that is reduced, gathered or scattered among a group; in an
        all-to-all and a collective-permute of what each device brings.
      group: devices in a group.
      times: as of the instruction.
      endless: as of the instruction.
    """

    kind: str
    name: str
    bytes: int
    group: int
    times: int
    endless: bool


class Program:
    """The text of an optimised module, `compiled.as_text()`, taken apart."""

    def __init__(self, text: str):
        self.entry, self.computations = '', {}
        lines = []
        for line in text.splitlines():
            if match := _COMPUTATION.match(line):
                lines = self.computations.setdefault(match[2], [])
                if match[1]:
                    self.entry = match[2]
            elif line.startswith(' '):
                lines.append(line)

    def executed(self) -> Iterator[Instruction]:
        """Instructions that run; those of a computation that is called twice come twice."""
        yield from self._walk(self.entry, 1, False, False)

    def _walk(self, name, times, endless, fused):
        for line in self.computations[name]:
            if not (match := _INSTRUCTION.match(line)):
                continue
            own, shape, kind, rest = match.groups()
            yield Instruction(own, kind, shape, rest, name, times, endless, fused)
            trips = self._trips(rest) if kind == 'while' else 1
            inside = fused or kind not in ('while', 'conditional', 'call')
            for _, called in _CALLS.findall(rest):
                for each in called.split(', '):
                    yield from self._walk(
                        each.strip('%'), times * (trips or 1), endless or trips is None, inside)

    def _trips(self, rest: str) -> int | None:
        """How often the body of a `while` runs, or None.

        The compiler's own note of it, or else the bound of a condition that compares a counter
        with a constant, as `lax.scan` and `lax.fori_loop` make it.
        """
        if match := _TRIPS.search(rest):
            return int(match[1])
        condition = self.computations[re.search(r'condition=%?([\w.\-]+)', rest)[1]]
        bounds = [int(match[1]) for match in map(_BOUND.search, condition) if match]
        counts = any('ROOT' in line and 'direction=LT' in line for line in condition)
        return bounds[0] if counts and len(bounds) == 1 else None


# Collectives ----------------------------------------------------------------------------------


def collectives(program: Program, devices: int) -> list[Collective]:
    """All collectives of a program for so many devices.

    What a compiler splits over several instructions (start, the computation beside it, done) has
    one channel and counts once. A reduction of which each device keeps a part is a reduce-scatter
    also where it is spelt as an all-reduce and a slice in a fusion.
    """
    found = {}
    for one in program.executed():
        kind = one.kind.removesuffix('-start')
        if kind in KINDS:
            channel = re.search(r'\bchannel_id=(\d+)', one.rest)
            key = channel[1] if channel else (one.computation, one.name)
            found.setdefault(key, _collective(one, kind, devices))
    return list(found.values())


def _collective(one: Instruction, kind: str, devices: int) -> Collective:
    arrays = _ARRAY.findall(one.shape)
    if one.kind.endswith('-start') and kind != 'all-reduce':
        # (operands, results, scalars of the runtime)
        arrays = [array for array in arrays if array[1]]
        arrays = arrays[len(arrays) // 2:]
    size, group = sum(map(_bytes, arrays)), _group(one.rest, devices)
    if kind == 'all-reduce' and one.computation.startswith('all-reduce-scatter'):
        kind = 'reduce-scatter'
    elif kind == 'reduce-scatter':
        size *= group
    return Collective(kind, one.name, size, group, one.times, one.endless)


def _bytes(array: tuple[str, str, str]) -> int:
    bits, sizes, _ = array
    count = math.prod(int(size.strip('<=')) for size in sizes.split(',')) if sizes else 1
    return math.ceil(count * int(bits or 8) / 8)


def _group(rest: str, devices: int) -> int:
    """Devices in each group; without groups, and in a collective-permute, all."""
    if match := re.search(r'replica_groups=\{\{([\d,]+)\}', rest):
        return match[1].count(',') + 1
    if match := re.search(r'replica_groups=\[\d+,(\d+)\]', rest):
        return int(match[1])
    if match := re.search(r'replica_groups=mesh\[(.*?)\] ?\{(.*?)\}', rest):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", match[1]))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", match[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return devices


# Memory and time ------------------------------------------------------------------------------


def cycles(program: Program) -> int:
    """Clock cycles that a TPU's compiler expects of all instructions, one after the other.

    It says nothing of collectives and of copies that run beside the computation.
    """
    return sum(one.times * int(match[1]) for one in program.executed()
               if not one.fused and (match := _CYCLES.search(one.rest)))


def hbm_bytes(program: Program) -> int:
    """Bytes that a TPU chip reads from and writes to its HBM.

    Each instruction reads its operands and writes its result, but for those in other memories
    (layouts of the text say which) and for the parts of an operand that are not looked at.
    """
    shapes = {}
    for name, lines in program.computations.items():
        found = filter(None, map(_INSTRUCTION.match, lines))
        shapes[name] = {match[1]: match[2] for match in found}
    return sum(one.times * _moved(one, shapes[one.computation], program)
               for one in program.executed() if not one.fused)


def _moved(one: Instruction, shapes: dict[str, str], program: Program) -> int:
    if one.kind in _FREE or one.kind.endswith('-done'):
        return 0
    written = [_hbm(array) for array in _ARRAY.findall(one.shape)]
    if one.kind == 'slice-start':  # ((whole), part, scalar of the runtime)
        part = _ARRAY.findall(one.shape)[-2]
        return _bytes(part) + _hbm(part)
    if one.kind.endswith('-start'):  # operands are among the results
        return sum(written)
    whole = [sum(map(_hbm, _ARRAY.findall(shapes[name]))) for name in _operands(one.rest)]
    if one.kind in ('dynamic-slice', 'slice', 'gather'):
        return sum(min(size, sum(written)) for size in whole) + sum(written)
    if one.kind == 'dynamic-update-slice':
        return 2 * sum(whole[1:])
    if one.kind == 'fusion':
        inside = program.computations[re.search(r'calls=%?([\w.\-]+)', one.rest)[1]]
        return _fused(inside, whole, sum(written))
    return sum(whole) + sum(written)


def _hbm(array: tuple[str, str, str]) -> int:
    """Bytes of an array, 0 if it is in another memory."""
    return 0 if array[2] else _bytes(array)


def _fused(inside: list[str], whole: list[int], written: int) -> int:
    """Bytes that a fusion moves: of operands that it only slices, or updates in place, a part.

    Args:
      inside: its instructions.
      whole: bytes of the operands.
      written: bytes of the result.
    """
    size, slices, updates, read = {}, {}, {}, set()
    parameters = {}
    for match in filter(None, map(_INSTRUCTION.match, inside)):
        name, shape, kind, rest = match.groups()
        size[name] = sum(map(_bytes, _ARRAY.findall(shape)))
        operands = _operands(rest)
        if kind == 'parameter':
            parameters[name] = whole[int(rest.partition(')')[0])]
        elif kind == 'dynamic-slice':
            slices[operands[0]] = slices.get(operands[0], 0) + size[name]
            operands = operands[1:]
        elif kind == 'dynamic-update-slice':
            updates[operands[0]] = updates.get(operands[0], 0) + size[operands[1]]
            operands = operands[1:]
        read |= set(operands)
    for name, full in parameters.items():
        if name in read:
            written += full
        elif name in updates:  # what stays of the result is not written again
            written += 2 * min(full, updates[name]) - min(full, written)
        else:
            written += min(full, slices.get(name, 0))
    return written


def _operands(rest: str) -> list[str]:
    return re.findall(r'%([\w.\-]+)', rest.partition('), ')[0])
