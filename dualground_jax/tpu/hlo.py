"""Reads the text of a compiled, partitioned XLA program: collectives, memory traffic, cycles."""

import collections
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')

_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)')
# Element type, its bits, sizes, and where in its layout a memory other than the HBM is named.
_ARRAY = re.compile(r'\b(?:pred|[a-z]+(\d+)\w*)\[([\d,<=]*)\](?:\{[^}]*?(S\(\d+\))?\})?')
_CALLED = re.compile(
    r'\b(?:calls|to_apply|body|condition|true_computation|false_computation|branch_computations)='
    r'\{?((?:%?[\w.\-]+(?:, %)?)+)'
)
# What names data without touching them, or leaves that to others.
_FREE = {'parameter', 'get-tuple-element', 'tuple', 'bitcast', 'constant', 'while', 'conditional',
         'call', 'after-all', 'partition-id'}


class Instruction(NamedTuple):
    """One instruction, as text: name, shape of the result, kind, operands and attributes."""

    name: str
    shape: str
    kind: str
    rest: str

    @property
    def bytes(self) -> int:
        """Of the result."""
        return sum(size for size, _ in _arrays(self.shape))

    @property
    def hbm(self) -> int:
        """Bytes of the result that lie in the HBM."""
        return sum(size for size, elsewhere in _arrays(self.shape) if not elsewhere)

    @property
    def operands(self) -> list[str]:
        """Their names."""
        return re.findall(r'%([\w.\-]+)', self.rest.partition('), ')[0])

    def attribute(self, pattern: str) -> str | None:
        """The group of a pattern among the attributes."""
        match = re.search(pattern, self.rest)
        return match and match[1]


class Execution(NamedTuple):
    """An instruction that runs.

    Attributes:
        instruction: which.
        computation: name of the one that it is in.
        times: how often it runs; in a loop of unknown length it is counted once.
        fused: whether it is a part of another one, inside of which nothing reaches the HBM.
    """

    instruction: Instruction
    computation: str
    times: int
    fused: bool


class Collective(NamedTuple):
    """One collective.

    Attributes:
        kind: of `KINDS`.
        bytes: of the whole array that is reduced, gathered or scattered among a group; in an
            all-to-all and a collective-permute of what each device brings.
        group: devices in a group.
        times: how often it runs.
    """

    kind: str
    bytes: int
    group: int
    times: int


class Program:
    """The text of an optimised module, `compiled.as_text()`, taken apart."""

    def __init__(self, text: str):
        self.entry, self.computations = '', {}
        for line in text.splitlines():
            if match := _COMPUTATION.match(line):
                inside = self.computations.setdefault(match[2], {})
                self.entry = match[2] if match[1] else self.entry
            elif match := _INSTRUCTION.match(line):
                inside[match[1]] = Instruction(*match.groups())

    def executed(self) -> Iterator[Execution]:
        """Instructions that run; those of a computation that is called twice come twice."""
        yield from self._walk(self.entry, 1, False)

    def _walk(self, name, times, fused):
        for one in self.computations[name].values():
            yield Execution(one, name, times, fused)
            trips = self._trips(one) if one.kind == 'while' else 1
            inside = fused or one.kind not in ('while', 'conditional', 'call')
            for called in _CALLED.findall(one.rest):
                for each in called.split(', '):
                    yield from self._walk(each.strip('%'), times * trips, inside)

    def _trips(self, loop: Instruction) -> int:
        """How often the body of a `while` runs; 1 if that is unknown.

        The compiler's own note of it, or else the bound of a condition that compares a counter
        with a constant, as `lax.scan` and `lax.fori_loop` make it.
        """
        if noted := loop.attribute(r'"known_trip_count":\{"n":"(\d+)"\}'):
            return int(noted)
        condition = self.computations[loop.attribute(r'condition=%?([\w.\-]+)')].values()
        bounds = [int(one.rest.partition(')')[0]) for one in condition
                  if one.kind == 'constant' and re.match(r'[su]\d+\[\]', one.shape)]
        counts = any('direction=LT' in one.rest for one in condition)
        return bounds[0] if counts and len(bounds) == 1 else 1


# Collectives ----------------------------------------------------------------------------------


def collectives(program: Program, devices: int) -> list[Collective]:
    """All collectives of a program for so many devices.

    What a compiler splits over several instructions (start, the computation beside it, done) has
    one channel and counts once. A reduction of which each device keeps a part is a reduce-scatter
    also where it is spelt as an all-reduce and a slice in a fusion.
    """
    found = {}
    for one, computation, times, _ in program.executed():
        kind = one.kind.removesuffix('-start')
        if kind not in KINDS:
            continue
        size, group = one.bytes, _group(one, devices)
        if one.kind.endswith('-start') and kind != 'all-reduce':
            # (operands, results, scalars of the runtime)
            arrays = _arrays(re.sub(r'\w+\[\]', '', one.shape))
            size = sum(size for size, _ in arrays[len(arrays) // 2:])
        if kind == 'all-reduce' and computation.startswith('all-reduce-scatter'):
            kind = 'reduce-scatter'
        elif kind == 'reduce-scatter':
            size *= group
        channel = one.attribute(r'\bchannel_id=(\d+)') or (computation, one.name)
        found.setdefault(channel, Collective(kind, size, group, times))
    return list(found.values())


@functools.lru_cache
def _arrays(shape: str) -> list[tuple[int, str]]:
    """(bytes, a memory other than the HBM or '') of each array of a result."""
    return [
        (math.ceil(math.prod(int(size.strip('<=')) for size in sizes.split(',') if size)
                   * int(bits or 8) / 8), elsewhere)
        for bits, sizes, elsewhere in _ARRAY.findall(shape)
    ]


def _group(one: Instruction, devices: int) -> int:
    """Devices in each group; without groups, and in a collective-permute, all."""
    if listed := one.attribute(r'replica_groups=\{\{([\d,]+)\}'):
        return listed.count(',') + 1
    if size := one.attribute(r'replica_groups=\[\d+,(\d+)\]'):
        return int(size)
    if match := re.search(r'replica_groups=mesh\[(.*?)\] ?\{(.*?)\}', one.rest):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", match[1]))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", match[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return devices


# Memory and time ------------------------------------------------------------------------------


def cycles(program: Program) -> int:
    """Clock cycles that a TPU's compiler expects of all instructions, one after the other.

    It says nothing of collectives and of copies that run beside the computation.
    """
    return sum(times * int(one.attribute(r'"estimated_cycles":"(\d+)"') or 0)
               for one, _, times, fused in program.executed() if not fused)


def hbm_bytes(program: Program) -> int:
    """Bytes that a TPU chip reads from and writes to its HBM.

    Each instruction reads its operands and writes its result, but for those in other memories
    (layouts of the text say which) and for the parts of an operand that are not looked at.
    """
    return sum(times * _moved(one, program.computations[name], program)
               for one, name, times, fused in program.executed() if not fused)


def _moved(one: Instruction, beside: dict[str, Instruction], program: Program) -> int:
    if one.kind in _FREE or one.kind.endswith('-done'):
        return 0
    if one.kind == 'slice-start':  # ((whole), part, scalar of the runtime)
        size, elsewhere = _arrays(one.shape)[-2]
        return size if elsewhere else 2 * size
    written = one.hbm
    if one.kind.endswith('-start'):  # operands are among the results
        return written
    whole = [beside[name].hbm for name in one.operands]
    if one.kind in ('dynamic-slice', 'slice', 'gather'):
        return sum(min(size, written) for size in whole) + written
    if one.kind == 'dynamic-update-slice':
        return 2 * sum(whole[1:])
    if one.kind == 'fusion':
        inside = program.computations[one.attribute(r'calls=%?([\w.\-]+)')]
        return _moved_by_fusion(inside, whole, written)
    return sum(whole) + written


def _moved_by_fusion(inside: dict[str, Instruction], whole: list[int], moved: int) -> int:
    """Bytes that a fusion moves: of operands that it only slices, or updates in place, a part.

    Args:
        inside: its instructions.
        whole: bytes of the operands.
        moved: bytes of the result.
    """
    sliced, updated, read = collections.Counter(), collections.Counter(), set()
    for one in inside.values():
        operands = one.operands
        if one.kind == 'dynamic-slice':
            sliced[operands.pop(0)] += one.bytes
        elif one.kind == 'dynamic-update-slice':
            updated[operands.pop(0)] += inside[operands[0]].bytes
        read.update(operands)
    for one in inside.values():
        if one.kind != 'parameter':
            continue
        full = whole[int(one.rest.partition(')')[0])]
        if one.name in read:
            moved += full
        elif one.name in updated:  # what stays of the result is not written again
            moved += 2 * min(full, updated[one.name]) - min(full, moved)
        else:
            moved += min(full, sliced[one.name])
    return moved
