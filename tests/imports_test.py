"""The layers of imports: the contracts in pyproject.toml hold."""

import subprocess
import sys

from tests.helpers.paths import REPO


def test_contracts_of_imports():
    code = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, '-c', code, '--no-cache'], cwd=REPO, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
