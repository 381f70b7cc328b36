"""Mode `compile`: what is read out of compiled programs, and what is made of it.

Real TPU programs take minutes: `COMPILE_FOR_TPU=1 pytest tests/dualground_jax/tpu -m slow`
compiles them, where libtpu is installed.
"""

import importlib.util
import json
import os
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from configs import common, qvh, synthetic
from data_pipelines.errors import UserError
from dualground_jax import cli, main, sharding, state
from dualground_jax.tpu import chips, compile, hlo
from tests.helpers import command_line
from tests.helpers.paths import REPO

# As TPU and CPU compilers print programs, shortened: sums in a loop of 3 and in one without end, an
# all-gather in three pieces, tuples, asynchronous pairs, a reduce-scatter in a fusion.
PROGRAM = """HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

StackFrames
1 {file_location_id=1 parent_frame_id=1}

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %one = f32[4,8]{1,0:T(8,128)} all-reduce(%p.1), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %nested = (s32[]) while(%t), condition=%found, body=%search
}

%condition (p: (s32[], f32[4,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(3)
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%search (p: (s32[])) -> (s32[]) {
  %any = (pred[]{:T(256)}, pred[4]) all-reduce(%a, %b), channel_id=2, replica_groups={}, to_apply=%add
}

%found (p: (s32[])) -> pred[] {
  ROOT %ne = pred[] compare(%i, %j), direction=NE
}

%start (p: bf16[2,16]) -> (bf16[2,16], bf16[8,16]) {
  %gather.1 = bf16[8,16]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={0}
}

%beside (p: bf16[2,16]) -> bf16[8,16] {
  %gather.2 = bf16[8,16]{1,0} all-gather(%p), channel_id=7, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={0}
}

%all-reduce-scatter.3 (p: f32[64,2]) -> f32[8,2] {
  %all = f32[64,2]{1,0} all-reduce(%p), channel_id=8, replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %own = f32[8,2]{1,0} dynamic-slice(%all, %i), dynamic_slice_sizes={8,2}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %loop = (s32[], f32[4,8]{1,0}) while(%t), condition=%condition, body=%body, metadata={op_name="jit(f)/while"}
  %noted = (s32[]) while(%t), condition=%found, body=%counted, backend_config={"known_trip_count":{"n":"5"}}
  %a = (bf16[2,16], bf16[8,16]) fusion(%x), kind=kCustom, calls=%start
  %b = bf16[8,16] fusion(%a), kind=kCustom, calls=%beside
  %c = f32[8,2]{1,0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.3
  %d = ((f32[2], s8[4]), (f32[8], s8[16])) all-gather-start(%x, %y), channel_id=9, replica_groups=[2,4]<=[8], dimensions={0}
  %e = (f32[8], s8[16]) all-gather-done(%d)
  %f = (f32[3,2]{1,0}, f32[3,2]{1,0}, u32[], u32[]) collective-permute-start(%x), channel_id=10, source_target_pairs={{0,1},{1,0}}
  %g = (f32[4], f32[6]) all-reduce-start(%x, %y), channel_id=11, replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add
  %h = f32[2,3] reduce-scatter(%x), channel_id=12, replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %i = (f32[1,5], f32[1,5]) all-to-all(%x, %y), replica_groups=mesh['axis_0'=2,'axis_1'=2,'axis_2'=2] {'axis_0','axis_2'}
}

%counted (p: (s32[])) -> (s32[]) {
  %j = f32[1] collective-permute(%p), channel_id=13, source_target_pairs={{0,1}}
}
"""  # noqa: E501


def test_collectives_of_a_printed_program():
    assert hlo.collectives(hlo.Program(PROGRAM), 8) == [
        ('all-reduce', 4 * 8 * 4, 4, 3),  # one
        ('all-reduce', 1 + 4, 8, 3),  # any: in a loop without end, counted once
        ('collective-permute', 4, 8, 5),  # j
        ('all-gather', 8 * 16 * 2, 4, 1),  # gather.1 and gather.2
        ('reduce-scatter', 64 * 2 * 4, 8, 1),  # all
        ('all-gather', 8 * 4 + 16, 4, 1),  # d
        ('collective-permute', 3 * 2 * 4, 8, 1),  # f
        ('all-reduce', (4 + 6) * 4, 2, 1),  # g
        ('reduce-scatter', 2 * 3 * 4 * 8, 8, 1),  # h
        ('all-to-all', 2 * 5 * 4, 4, 1),  # i
    ]


def test_collectives_of_compiled_programs():
    mesh = Mesh(np.array(jax.devices()[:2]), 'x')
    split, whole = NamedSharding(mesh, PartitionSpec('x')), NamedSharding(mesh, PartitionSpec())

    def program(function, size, out):
        x = jax.ShapeDtypeStruct((size, 3), jnp.float32, sharding=split)
        text = jax.jit(function, out_shardings=out).lower(x).compile().as_text()
        return hlo.collectives(hlo.Program(text), 2)

    assert program(lambda x: x + 1, 8, split) == []
    assert program(lambda x: x.sum(0), 8, whole) == [('all-reduce', 3 * 4, 2, 1)]
    assert program(lambda x: x + 1, 8, whole) == [('all-gather', 8 * 3 * 4, 2, 1)]

    def loop(x):
        return jax.lax.fori_loop(0, 6, lambda _, c: jnp.cos(c + (x * c).sum(0)), jnp.ones(3))

    assert program(loop, 8, whole) == [('all-reduce', 3 * 4, 2, 6)]


MEMORY = """HloModule jit_g

%slice (p: f32[6,100], i: s32[]) -> f32[1,100] {
  %p = f32[6,100]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %part = f32[1,100]{1,0} dynamic-slice(%p, %i, %i), dynamic_slice_sizes={1,100}
}

%update (q: f32[6,100], r: f32[1,100], j: s32[]) -> f32[6,100] {
  %q = f32[6,100]{1,0} parameter(0)
  %r = f32[1,100]{1,0} parameter(1)
  %j = s32[] parameter(2)
  ROOT %new = f32[6,100]{1,0} dynamic-update-slice(%q, %r, %j, %j)
}

%body (c: (s32[], f32[6,100])) -> (s32[], f32[6,100]) {
  %n = s32[]{:T(128)S(6)} get-tuple-element(%c), index=0
  %x = f32[6,100]{1,0:T(8,128)} get-tuple-element(%c), index=1
  %row = f32[1,100]{1,0:T(1,128)} fusion(%x, %n), kind=kLoop, calls=%slice, backend_config={"estimated_cycles":"7"}
  %y = f32[6,100]{1,0:T(8,128)} fusion(%x, %row, %n), kind=kLoop, calls=%update
}

%more (c: (s32[], f32[6,100])) -> pred[] {
  %m = s32[]{:S(6)} get-tuple-element(%c), index=0
  %limit = s32[]{:S(6)} constant(5)
  ROOT %lt = pred[]{:S(6)} compare(%m, %limit), direction=LT
}

ENTRY %main (a: f32[100,100], b: f32[6,100]) -> f32[100,100] {
  %a = f32[100,100]{1,0:T(8,128)} parameter(0)
  %b = f32[6,100]{1,0:T(8,128)} parameter(1)
  %near = (f32[100,100]{1,0:T(8,128)S(1)}, f32[100,100]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%a)
  %there = f32[100,100]{1,0:T(8,128)S(1)} copy-done(%near)
  %few = ((f32[100,100]{1,0:T(8,128)}), f32[10,100]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:10], [0:100]}
  %t = (s32[], f32[6,100]) tuple(%zero, %b)
  %loop = (s32[], f32[6,100]{1,0}) while(%t), condition=%more, body=%body
  %inner = f32[100,100]{1,0:T(8,128)S(1)} add(%there, %there), backend_config={"estimated_cycles":"100"}
  ROOT %out = f32[100,100]{1,0:T(8,128)} multiply(%inner, %a), backend_config={"estimated_cycles":"50"}
}
"""  # noqa: E501


def test_traffic_and_cycles_of_a_printed_program():
    """By hand; S(1) is on the chip, and of what is sliced or updated only that part moves."""
    big, row = 100 * 100 * 4, 100 * 4
    loop = 5 * ((row + row) + (row + 2 * row))  # read a row, write it; read it, update in place
    program = hlo.Program(MEMORY)
    assert hlo.hbm_bytes(program) == big + big // 10 + loop + 2 * big
    assert hlo.cycles(program) == 5 * 7 + 100 + 50


def test_traffic_of_compiled_programs():
    """As the compiler counts it, which takes a loop's body for one run."""
    x, w = (jax.ShapeDtypeStruct((64, n), jnp.float32) for n in (64, 32))
    for function in (lambda x, w: x @ w, lambda x, w: (jnp.sin(x) + 1, w.sum(0))):
        compiled = jax.jit(function).lower(x, w).compile()
        moved = hlo.hbm_bytes(hlo.Program(compiled.as_text()))
        assert moved == pytest.approx(compiled.cost_analysis()['bytes accessed'], rel=0.05)


def test_topologies():
    assert chips.parse('v5e:4x8').sizes == (4, 8)
    assert chips.parse('v4:4x4x8').sizes == (4, 4, 8)
    assert chips.parse('cpu:2').chip is None
    for bad in ('v5e', 'v5e:', 'v5e:4', 'v5e:4x4x4', 'v4:4x4', 'v5e:0x4', 'v5e:4x-4', 'v7x:2x2',
                'cpu:2x2', '4x4', 'v5e:4x4 '):
        with pytest.raises(UserError, match='expected v4:AxBxC, v5e:AxB, .* cpu:A'):
            chips.parse(bad)


def test_links_of_a_group():
    """By hand: v5e closes axes of 16 only, v4 those of 4; a link carries 50 and 47 GB/s."""
    pod, host, cube = map(chips.parse, ('v5e:16x16', 'v5e:2x4', 'v4:4x4x4'))
    assert pod.bandwidth(256) == (4 * 50e9, 16)
    assert pod.bandwidth(16) == (2 * 50e9, 8)
    assert pod.bandwidth(4) == (50e9, 3)
    assert host.bandwidth(8) == (2 * 50e9, 4)
    assert host.bandwidth(2) == (50e9, 1)
    assert cube.bandwidth(64) == (6 * 47e9, 6)
    assert cube.bandwidth(16) == (4 * 47e9, 4)
    assert chips.parse('v5e:1x1').bandwidth(1) == (0, 0)


def one(kind, size, group, times=1):
    return hlo.Collective(kind, size, group, times)


@pytest.mark.parametrize('kind, seconds', [
    ('all-reduce', 2 * 15 / 16 * 1e9 / 100e9),
    ('all-gather', 15 / 16 * 1e9 / 100e9),
    ('reduce-scatter', 15 / 16 * 1e9 / 100e9),
    ('all-to-all', 16 * 1e9 / 4 / 100e9),
    ('collective-permute', 1e9 / 100e9),
])
def test_time_of_a_collective(kind, seconds):
    """A gigabyte on a ring of 16: by the formulas of scaling-book, 'Sharding'."""
    pod = chips.parse('v5e:16x16')
    assert chips.collective_seconds(one(kind, 10**9, 16), pod) == pytest.approx(seconds)
    repeated = chips.collective_seconds(one(kind, 10**9, 16, times=3), pod)
    assert repeated == pytest.approx(3 * seconds)
    small = 16e-6 if kind == 'all-reduce' else 8e-6  # 8 hops of a microsecond
    assert chips.collective_seconds(one(kind, 4, 16), pod) == pytest.approx(small)
    assert chips.collective_seconds(one(kind, 10**9, 1), pod) == 0


def test_estimate_names_what_limits():
    pod = chips.parse('v5e:16x16')
    program = hlo.Program(MEMORY)
    hbm = hlo.hbm_bytes(program) / 0.819e12
    found = chips.estimate(197e12, program, [], pod)
    assert found == dict(compute=1.0, hbm=hbm, interconnect=0, step=1.0, limit='compute',
                         scheduled=185 / 1.5e9)
    assert chips.estimate(1.0, program, [], pod)['limit'] == 'hbm'
    found = chips.estimate(197e11, program, [one('all-reduce', 32 * 10**9, 16)], pod)
    assert found['limit'] == 'interconnect'
    assert found['step'] == found['interconnect'] == pytest.approx(0.6)


def test_needed_bytes():
    """Of messages that libtpu 0.0.42 printed."""
    assert compile.needed_bytes(
        'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO '
        'temporaries (512.00G) exceeds available HBM (15.75G).') == 512 * 2**30
    assert compile.needed_bytes(
        'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space '
        'hbm. Used 16.50M of 15.75M hbm.') == 16.5 * 2**20
    assert compile.needed_bytes('INTERNAL: Used 16.50M of 15.75M hbm.') is None


# The mode -------------------------------------------------------------------------------------


def tiny():
    config = synthetic.get_config('runlocal,model=flash_vtg')
    config.model.update(input_layers=1, mlp_layers=1, strides=(1,))
    return config


@pytest.fixture(name='config')
def tiny_config():
    return tiny()


def values(topology, **changes):
    return types.SimpleNamespace(
        **dict(topology=topology, output=None, largest_batch=False) | changes)


@pytest.fixture(name='report', scope='module')
def compiled_report(tmp_path_factory):
    path = tmp_path_factory.mktemp('compile') / 'report.json'
    report = compile.run(values('cpu:2', output=str(path)), tiny().lock())
    assert json.loads(path.read_text()) == report
    return report


def test_report(report):
    assert (report['chips'], report['mesh']) == (2, dict(data=2, fsdp=1, model=1))
    for step in (report, report['predict']):
        memory = step['memory']
        assert step['fits'] and step['hbm_limit_bytes'] is None and step['seconds'] is None
        assert step['hbm_bytes_per_chip'] == (
            memory['argument'] + memory['output'] + memory['temp'] - memory['alias'])
        assert step['flops'] == 2 * step['flops_per_chip'] > 1e7
    # Forward and backward against forward alone.
    assert 2 < report['flops'] / report['predict']['flops'] < 8


def test_report_counts_every_gradient(config, report):
    """Data parallelism adds up the gradient of every parameter, shared ones for each use."""
    params = state.abstract_state(config, sharding.one_device()).params
    gradients = sum(4 * x.size for x in jax.tree.leaves(params))
    moved = report['collectives']['all-reduce']['bytes']
    assert gradients <= moved < 2 * gradients
    # The state, in and out: parameters and two moments.
    assert 3 * gradients <= report['memory']['alias'] < 1.1 * 3 * gradients


def test_table_shows_the_report(report):
    cells = {line[:26].strip(): line[26:].split('  ') for line in compile.table(report).split('\n')}
    train, predict = (
        lambda name, at=at: [text for text in cells[name] if text][at].strip() for at in (0, 1))
    assert (train('topology'), train('mesh data'), train('model')) == ('cpu:2', '2', 'flash_vtg')
    assert train('memory temp') == compile.gib(report['memory']['temp'])
    assert predict('flops') == f'{report["predict"]["flops"]:.4g}'
    moved = report['collectives']['all-reduce']
    assert train('all-reduce count') == str(moved['count'])
    assert train('all-reduce bytes') == compile.gib(moved['bytes'])
    assert not any('all-to-all' in name for name in cells)
    assert compile.gib(1536) == '1.5 KiB' and compile.gib(5) == '5 B'


class TooLarge:
    """A step that libtpu refuses."""

    def trace(self, *_):
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Used 2.00M of 976.6K hbm.')


def test_a_step_that_does_not_fit_is_refused_after_the_report(config, tmp_path, monkeypatch):
    monkeypatch.setattr(chips, 'parse', lambda text: chips.Topology(
        text, (1, 2), chips.Chip(1e9, 1e9, 1e6, 1e9, 1e9, 2, 16)))
    monkeypatch.setattr(chips.Topology, 'devices', lambda self: jax.devices()[:2])
    small = jax.jit(lambda x: x + 1), (jax.ShapeDtypeStruct((4,), jnp.float32),)
    monkeypatch.setattr(compile, 'make_step', lambda name, *_: dict(
        train=(TooLarge(), ()), predict=small)[name])
    path = tmp_path / 'report.json'
    with pytest.raises(UserError) as error:
        compile.run(values('tiny', output=str(path)), config.lock())
    assert str(error.value) == (
        'tiny: the train step of 8 needs 2 MiB of HBM a chip, there is 976.6 KiB')
    written = json.loads(path.read_text())
    assert not written['fits'] and written['predict']['fits']
    assert written['hbm_bytes_per_chip'] == 2 * 2**20
    assert written['hbm_limit_bytes'] == 10**6
    assert 'flops' not in written and written['predict']['hbm_bytes_per_chip'] == 32


@pytest.mark.parametrize(
    'limit, expected, most', [(1000, 128, 3), (90, 8, 1), (75, 4, 1), (40, 0, 1)]
)
def test_largest_batch(config, monkeypatch, limit, expected, most):
    """Memory of 50 + 10 rows a chip, on two chips; the config's batch is 8."""
    compiled = []

    def measured(name, own, *_):
        compiled.append(own.train.batch_size)
        return dict(hbm_bytes_per_chip=50 + 10 * own.train.batch_size / 2)

    monkeypatch.setattr(compile, 'measure', measured)
    place = chips.Topology('tiny', (1, 2), chips.Chip(1, 1, limit, 1, 1, 2, 16))
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:2])
    first = dict(batch_size=8, hbm_bytes_per_chip=90)
    found = compile.largest_batch(config, mesh, place, first)
    assert found['batch_size'] == expected
    assert found['compilations'] == len(compiled) + 1 == most + 1
    assert len(set(compiled)) == len(compiled)


def test_flops_count_every_layer_of_a_loop(config):
    common.resize(config, t2v_layers=4)

    def counted():
        step, arguments = compile.make_step('predict', config, sharding.one_device())
        return step.lower(*arguments).cost_analysis()['flops']

    unrolled = counted()
    config.model.scan_layers = True
    assert counted() < 0.9 * unrolled
    assert compile.unrolled_flops('predict', config, dict(scan_layers=False)) == unrolled


@pytest.mark.parametrize('arguments, message', [
    ([], 'needs --topology'),
    (['--topology=v9:2x2'], 'v9:2x2: expected v4:AxBxC'),
    (['--topology=cpu:99'], 'has 2 devices'),
    (['--topology=cpu:2', '--config.mesh.model=3'], 'needs 3 devices'),
    (['--topology=cpu:2', '--config.train.batch_size=7'], 'train.batch_size=7 cannot be split'),
    (['--topology=cpu:2', '--config.data.resident=true'], 'data.resident=false'),
    (['--topology=cpu:2', '--largest_batch'], 'cpu:2 has no limit'),
])
def test_mistakes_on_the_command_line(monkeypatch, arguments, message):
    monkeypatch.chdir(REPO)
    argv = ['main', '--mode=compile', '--config=configs/synthetic.py:runlocal', *arguments]
    command_line.start(monkeypatch, argv)
    with pytest.raises(SystemExit) as exit_info:
        main.main(cli.parse(argv))
    text = str(exit_info.value.code)
    assert text.startswith('error: ') and message in text and '\n' not in text


def test_libtpu_is_named_where_it_lacks(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r"libtpu: pip install -e '\.\[tpu\]'"):
        chips.parse('v5e:2x4').devices()


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get('COMPILE_FOR_TPU') or importlib.util.find_spec('libtpu') is None,
    reason="takes minutes: needs COMPILE_FOR_TPU=1 and libtpu (pip install -e '.[tpu]')",
)
@pytest.mark.parametrize('topology, mesh', [
    ('v5e:2x4', {}), ('v5e:16x16', dict(fsdp=16)), ('v4:4x4x4', dict(fsdp=8, model=2)),
])
def test_compiles_for_tpu_slices(topology, mesh):
    """Full QVHighlights size, one row a chip; the smallest program a pod can be given."""
    config = qvh.get_config()
    config.model.scan_layers = True  # compiles faster
    config.mesh.update(mesh)
    rows = chips.parse(topology).chips
    config.train.batch_size = config.evaluate.batch_size = rows
    report = compile.run(values(topology), config.lock())
    assert report['chips'] == rows
    assert report['fits'] and report['hbm_limit_bytes'] > report['hbm_bytes_per_chip'] > 2**20
    assert report['seconds']['step'] > 0
    assert 'all-reduce' in report['collectives'] or 'reduce-scatter' in report['collectives']
