"""TPU chips: what they are capable of at best, how they are wired, and the time a step needs."""

import contextlib
import importlib.util
import itertools
import math
import os
import re
from dataclasses import dataclass

import jax
from jax.experimental import topologies

from data_pipelines.errors import UserError
from dualground_jax.tpu import hlo

GIB = 2**30
# Products of bfloat16 that the matrix units make of one of float32, by model.matmul_precision
# (jax.lax.Precision). libtpu 0.0.42 expects 1, 2.85 and 5.70 times the cycles.
PASSES = dict(default=1, high=3, highest=6)
HOP = 1e-6  # seconds that a message needs at least from chip to chip (scaling-book, 'Sharding')


@dataclass(frozen=True)
class Chip:
    """Peak numbers of one chip.

    Peak compute, capacity and bandwidth of the HBM: https://cloud.google.com/tpu/docs/v4, v5e, v5p
    and v6e. A link: there, from the bandwidth of a chip (v5e 400, v5p 1200, v6e 800 GB/s over 4, 6,
    4 ports, both directions) or the bisection of a pod (v4: 24 TB/s over 512 links).

    Attributes:
        flops: bfloat16, per second.
        clock: cycles per second: flops over those of a cycle in the matrix units.
        hbm_bytes: what the compiler (libtpu 0.0.42) lets a program use.
        hbm_bandwidth: bytes per second.
        link_bandwidth: bytes per second in one direction of one link.
        axes: of the torus.
        ring: an axis is closed to a ring if this divides its length
            (https://jax-ml.github.io/scaling-book/tpus).
        config_name: libtpu's, where a chip has several.
    """

    flops: float
    clock: float
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float
    axes: int
    ring: int
    config_name: str | None = None


CHIPS = {
    'v4': Chip(275e12, 1.05e9, 30.75 * GIB, 1.2e12, 47e9, 3, 4, 'megacore'),
    'v5e': Chip(197e12, 1.5e9, 15.75 * GIB, 0.819e12, 50e9, 2, 16),
    'v5p': Chip(459e12, 1.75e9, 95.74 * GIB, 2.765e12, 100e9, 3, 4),
    'v6e': Chip(918e12, 1.75e9, 31.25 * GIB, 1.6e12, 100e9, 2, 16),
}


@dataclass(frozen=True)
class Topology:
    """A slice of a pod, or devices that this machine's CPU plays.

    Attributes:
        name: as given.
        sizes: chips along each axis.
        chip: None for the CPU.
    """

    name: str
    sizes: tuple[int, ...]
    chip: Chip | None

    def devices(self) -> list:
        """Devices to compile for; a TPU's are descriptions, which nothing can run on.

        Raises:
            UserError: no libtpu, no such slice, or JAX has started with fewer CPU devices.
        """
        jax.config.update('jax_platforms', 'cpu')
        if self.chip:
            return self._tpu_devices()
        count = math.prod(self.sizes)
        with contextlib.suppress(RuntimeError):  # too late to choose: JAX is running
            jax.config.update('jax_num_cpu_devices', count)
        found = jax.local_devices()
        if len(found) < count:
            raise UserError(f'--topology={self.name}: this process has {len(found)} devices')
        return found[:count]

    def _tpu_devices(self) -> list:
        if importlib.util.find_spec('libtpu') is None:
            raise UserError(f"--topology={self.name} needs libtpu: pip install -e '.[tpu]'")
        # It would look for the machine's TPUs, and ask a server what they are.
        os.environ.update(TPU_SKIP_MDS_QUERY='1', TPU_ACCELERATOR_TYPE='v5litepod-16',
                          TPU_WORKER_HOSTNAMES='localhost')
        host = [min(size, 2) for size in self.sizes] + [1] * (3 - len(self.sizes))
        named = dict(chip_config_name=self.chip.config_name) if self.chip.config_name else {}
        try:
            return topologies.get_topology_desc(
                platform='tpu', topology_name=self.name, chips_per_host_bounds=host, **named,
            ).devices
        except jax.errors.JaxRuntimeError as error:
            message = ' '.join(str(error).split())
            raise UserError(f'--topology={self.name}: {message}') from error

    def bandwidth(self, group: int) -> tuple[float, int]:
        """(bytes per second into and out of a chip, hops to the farthest one) of a group of chips.

        A group is taken to span whole axes if its size allows, else to be a line within one.
        """
        axes = [size for size in self.sizes if size > 1]
        whole = [part for n in range(len(axes) + 1) for part in itertools.combinations(axes, n)
                 if math.prod(part) == group]
        rings = [(size, size % self.chip.ring == 0) for size in whole[0]] if whole else [
            (group, False)]
        links = sum(2 if ring else 1 for _, ring in rings)
        hops = sum(size // 2 if ring else size - 1 for size, ring in rings)
        return links * self.chip.link_bandwidth, hops


def parse(text: str) -> Topology:
    """Reads 'v5e:4x4', 'v4:4x4x4', or 'cpu:8'.

    Raises:
        UserError: another kind, or another number of axes.
    """
    kind, _, sizes = text.partition(':')
    axes = 1 if kind == 'cpu' else CHIPS[kind].axes if kind in CHIPS else 0
    if not axes or not re.fullmatch('x'.join([r'[1-9]\d*'] * axes), sizes):
        known = ', '.join(f'{name}:{"x".join("ABC"[:chip.axes])}' for name, chip in CHIPS.items())
        raise UserError(f'--topology={text}: expected {known} or cpu:A, with numbers of chips')
    return Topology(text, tuple(map(int, sizes.split('x'))), CHIPS.get(kind))


def collective_seconds(one: hlo.Collective, place: Topology) -> float:
    """Time of one collective, all its executions together, if the links do nothing else.

    A ring moves each byte past all others of its group, twice to reduce and hand out; it takes no
    less than the latency of its hops.
    """
    if one.group == 1:
        return 0.0
    bandwidth, hops = place.bandwidth(one.group)
    passes = 2 if one.kind == 'all-reduce' else 1
    share = {'all-to-all': one.group / 4, 'collective-permute': 1.0}.get(
        one.kind, passes * (one.group - 1) / one.group)
    return one.times * max(passes * hops * HOP, share * one.bytes / bandwidth)


def estimate(
    flops: float, program: hlo.Program, collectives: list[hlo.Collective], place: Topology
) -> dict:
    """The least time of a step: the longest of what chip, HBM and interconnect are busy.

    Args:
        flops: of one chip, in bfloat16: a product of float32 is several.
        program: that it runs.
        collectives: of the program.
        place: a TPU.

    Returns:
        compute, hbm and interconnect, the seconds of each; step, the longest; limit, which that
        is; scheduled, the seconds that the compiler expects of all instructions one after the
        other: they seldom fill the matrix units.
    """
    chip = place.chip
    seconds = dict(
        compute=flops / chip.flops,
        hbm=hlo.hbm_bytes(program) / chip.hbm_bandwidth,
        interconnect=sum(collective_seconds(one, place) for one in collectives),
    )
    limit = max(seconds, key=seconds.get)
    return dict(seconds, step=seconds[limit], limit=limit,
                scheduled=hlo.cycles(program) / chip.clock)
