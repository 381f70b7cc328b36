"""Mode `train`, then mode `evaluate` of what it left: a process of its own would import anew.

    python -m tests.helpers.train_and_evaluate FLAGS OF dualground_jax.main
"""

import pathlib
import re
import sys

from absl import app, flags

from dualground_jax import cli, main, runtime


def run(argv: list[str]) -> None:
    """Runs both modes."""
    main.main(argv)
    if runtime.is_first():
        pathlib.Path(flags.FLAGS.workdir, 'val_predictions.jsonl').unlink()
    runtime.join_processes = lambda values: None  # they have joined
    flags.FLAGS.mode = 'evaluate'
    # Mode evaluate refuses what it does not read.
    sys.argv = [arg for arg in sys.argv if not re.match(r'--config\.(train|optimizer)\.', arg)]
    main.main(argv)


if __name__ == '__main__':
    app.run(run, flags_parser=cli.parse)
