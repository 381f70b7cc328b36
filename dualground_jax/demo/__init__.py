"""What comes with the package, so that nothing needs to be downloaded to try it."""

import pathlib

ENCODER = pathlib.Path(__file__).parent / 'encoder'  # a small CLIP: --encoder=clip=... (its card)
