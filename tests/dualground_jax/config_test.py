"""Configs: from files and runs, run once, with every unknown key named."""

import pytest

from data_pipelines.errors import ConfigError, UserError
from dualground_jax import cli, main
from dualground_jax.config import load_config, read_file
from tests.helpers import command_line
from tests.helpers.paths import REPO

COUNTED = """
import pathlib
from ml_collections import ConfigDict

def get_config(argument=None):
    with open(pathlib.Path(__file__).with_name('calls'), 'a') as file:
        file.write(f'{argument}\\n')
    return ConfigDict(dict(a=1, b=dict(c=(1, 2), d=True)))
"""


@pytest.fixture(name='file')
def counted_file(tmp_path):
    (tmp_path / 'counted.py').write_text(COUNTED)
    return tmp_path / 'counted.py'


def test_the_command_line_runs_a_config_once(file, monkeypatch):
    argv = ['main', f'--config={file}:x=1', '--config.b.c=3,4', '--noconfig.b.d', '--config.a=2']
    command_line.start(monkeypatch, argv)
    assert cli.parse(argv) == ['main']
    config = main.flags.FLAGS.config
    assert config.to_dict() == dict(a=2, b=dict(c=(3, 4), d=False)) and config.is_locked
    assert file.with_name('calls').read_text() == 'x=1\n'


@pytest.mark.parametrize('override', ['--config.b.e=1', '-config.b.e=1', '--noconfig.b.e'])
def test_every_way_to_misspell_a_key_is_named(override, file, monkeypatch):
    argv = ['main', f'--config={file}', override]
    command_line.start(monkeypatch, argv)
    with pytest.raises(SystemExit, match="error: .*config.b has no key 'e', known are: c, d"):
        cli.parse(argv)


def test_load_config_changes_values(file):
    config = load_config(f'{file}:x', {'b.d': False, 'a': 5})
    assert config.a == 5 and not config.b.d and config.is_locked
    with pytest.raises(ConfigError, match="config has no key 'aa', known are: a, b"):
        load_config(file, {'aa': 1})
    with pytest.raises(UserError, match='no checkpoint'):
        load_config(file.parent)


def test_configs_are_found_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert read_file('configs/qvh.py:model=cg_detr').model.name == 'cg_detr'
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs' / 'qvh.py').write_text('def get_config(_): return dict(own=True)')
    assert read_file('configs/qvh.py') == dict(own=True)
    with pytest.raises(ConfigError, match='configs/none.py: no such file'):
        read_file('configs/none.py')
    assert (REPO / 'configs' / 'qvh.py').is_file()
