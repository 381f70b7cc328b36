"""The wheel: it holds all of the packages, and works where the repository is not."""

import json
import os
import pathlib
import shutil
import site
import subprocess
import sys
import venv
import zipfile

import pytest

from tests.helpers.paths import REPO

PACKAGES = ('configs', 'data_pipelines', 'dualground_jax')


@pytest.fixture(scope='module', name='wheel')
def built_wheel(tmp_path_factory):
    """Built from the tracked files alone, as setuptools keeps what it once copied."""
    if not (REPO / '.git').exists():
        pytest.skip('no git repository, which tells what belongs to the packages')
    folder = tmp_path_factory.mktemp('wheel')
    for name in tracked(*PACKAGES, 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
        (folder / 'source' / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPO / name, folder / 'source' / name)
    subprocess.run(
        [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation',
         '--no-index', '-w', folder, folder / 'source'], check=True, capture_output=True)
    found, = folder.glob('*.whl')
    return found


def tracked(*paths):
    told = subprocess.run(['git', 'ls-files', '-z', *paths], cwd=REPO, check=True,
                          capture_output=True, text=True).stdout
    return [name for name in told.split('\0') if name and (REPO / name).is_file()]


def test_the_wheel_holds_what_the_packages_have(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if '.dist-info/' not in name}
        entry_points, = (archive.read(name).decode() for name in archive.namelist()
                         if name.endswith('entry_points.txt'))
    assert names == set(tracked(*PACKAGES))
    assert 'dualground = dualground_jax.main:start' in entry_points


@pytest.mark.slow
def test_an_installed_wheel_trains_and_publishes_outside_the_repository(wheel, tmp_path):
    """Dependencies are those of the tests; a `configs` of the user hides nothing of ours."""
    venv.create(tmp_path / 'venv', with_pip=True)
    bin_folder = tmp_path / 'venv' / 'bin'
    subprocess.run([bin_folder / 'pip', 'install', '-q', '--no-deps', '--no-index', wheel],
                   check=True)
    packages, = (tmp_path / 'venv').glob('lib/*/site-packages')
    (packages / 'others.pth').write_text('\n'.join(site.getsitepackages()))
    work = tmp_path / 'work'
    (work / 'configs').mkdir(parents=True)
    (work / 'configs' / '__init__.py').write_text('')
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}

    def dualground(*arguments):
        done = subprocess.run([bin_folder / 'dualground', *arguments], cwd=work, env=environment,
                              capture_output=True, text=True)
        assert not done.returncode, done.stderr
        return done.stdout

    dualground('--config=configs/synthetic.py:runlocal', '--config.train.max_steps=4',
               '--workdir=run')
    assert json.loads((work / 'run' / 'results.json').read_text())['best_step'] == 4
    dualground('--mode=publish', '--workdir=run', '--output=model')
    told = dualground('--mode=evaluate', '--workdir=model')
    assert 'best checkpoint: step 4' in told
    where = subprocess.run(
        [bin_folder / 'python', '-c', 'import dualground_jax; print(dualground_jax.__file__)'],
        cwd=work, env=environment, check=True, capture_output=True, text=True).stdout
    assert pathlib.Path(where.strip()).is_relative_to(packages)
