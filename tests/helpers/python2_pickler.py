"""Pickles as Python 2 did, with its numpy: for tests of what reads old files."""

import pickle


class Python2Pickler(pickle._Pickler):
    """Writes texts and bytes alike, and the names of numpy's modules before version 2."""

    dispatch = dict(pickle._Pickler.dispatch)

    def __init__(self, file):
        super().__init__(file, protocol=2)

    def save_text(self, value):
        content = value if isinstance(value, bytes) else value.encode('latin1')
        self.write(pickle.BINSTRING + len(content).to_bytes(4, 'little') + content)

    dispatch[str] = dispatch[bytes] = save_text

    def save_global(self, value, name=None):
        module = value.__module__.replace('numpy._core', 'numpy.core')
        self.write(pickle.GLOBAL + f'{module}\n{value.__qualname__}\n'.encode())
        self.memoize(value)
