"""The command line in the tests' process."""

import sys

from absl import flags


def start(monkeypatch, argv: list[str]) -> None:
    """Makes this process look freshly started with argv; ml_collections reads sys.argv."""
    monkeypatch.setattr(sys, 'argv', argv)
    flags.FLAGS.unparse_flags()
    for name in list(flags.FLAGS):
        if name.startswith('config.'):  # an override that another test named
            delattr(flags.FLAGS, name)
