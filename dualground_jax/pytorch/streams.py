"""Which video streams a checkpoint was trained on, in which order.

The weights tell the sum of their widths alone, and public scripts name the folders in either order.
So the names of the folders tell, or the user does.
"""

import itertools
import re
from collections.abc import Mapping, Sequence

from dualground_jax.state_dict import ConvertError

# Encoder -> how the names of folders spell it.
_ENCODERS = {
    'slowfast': r'slow[-_ ]?fast|(?<![a-z])sf(?![a-z])',
    'clip': r'(?<![a-z])clip(?!s|p|[-_]?len)',
    'internvideo': r'intern|(?<![a-z])iv2(?![a-z0-9])|(?<![a-z0-9])6b(?![a-z0-9])',
    'audio': r'pann|audio|vggish',
    'vgg': r'vgg(?!ish)',
    'c3d': r'c3d',
    'i3d': r'i3d',
    'resnet': r'resnet',
    'blip': r'blip',
}


def orders(streams: Mapping[str, int], width: int, names: Sequence[str] = ()
           ) -> list[tuple[str, ...]]:
    """The orders of streams that a model can have been trained on.

    Args:
        streams: folder -> width.
        width: of the streams that the model reads, together.
        names: of their folders there, in order; empty: of none, and so any number.

    Returns:
        Tuples of the folders of `streams`.
    """
    counts = [len(names)] if names else range(1, len(streams) + 1)
    found = [order for n in counts for order in itertools.permutations(streams, n)
             if sum(streams[name] for name in order) == width]
    return [order for order in found
            if all(_may_be(name, stream, streams) for name, stream in zip(names, order))]


def the_order(streams: Mapping[str, int], width: int, names: Sequence[str]) -> tuple[str, ...]:
    """The one of `orders`.

    Raises:
        ConvertError: the names do not tell, so the user has to.
    """
    found = orders(streams, width, names)
    if len(found) == 1:
        return found[0]
    asked = ' or '.join(f'--streams={",".join(order)}' for order in
                        (found or orders(streams, width))[:6])
    raise ConvertError('which video stream comes first can\'t be told from '
                       f'{", ".join(map(repr, names)) or "the checkpoint"}, give it: {asked}')


def _parts(path: str) -> list[str]:
    return [part for part in re.split(r'[\\/]+', path.lower()) if part]


def _encoder(path: str) -> str | None:
    """The encoder that the end of a path names; None if it names none, or two."""
    for part in reversed(_parts(path)):
        if found := [name for name, spelt in _ENCODERS.items() if re.search(spelt, part)]:
            return found[0] if len(found) == 1 else None
    return None


def _may_be(name: str, stream: str, streams: Mapping[str, int]) -> bool:
    """Whether a folder of the checkpoint may hold a stream, as far as names tell."""
    same = [other for other in streams if _parts(name)[-len(_parts(other)):] == _parts(other)]
    if same:
        return stream in same
    encoders = _encoder(name), _encoder(stream)
    return None in encoders or encoders[0] == encoders[1]
