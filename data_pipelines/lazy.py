"""Features that are read when they are needed, and what memory keeps of them."""

import collections
import math
import threading
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import numpy as np


class Memory:
    """Keeps arrays until they fill a budget; what is kept stays.

    Every epoch asks for all arrays once in a new order, and an evaluation in the same one. Keeping
    whichever came first then serves the share of them that fits, from the second epoch on; dropping
    the least recently used would serve fewer, and none where the order is the same. Threads may
    share it.
    """

    def __init__(self, gigabytes: float):
        """`gigabytes` of 10^9 bytes; a negative number has no limit."""
        self.unlimited = gigabytes < 0
        self._free = math.inf if self.unlimited else gigabytes * 1e9
        self._kept: dict[Hashable, np.ndarray] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, read: Callable[[], np.ndarray]) -> np.ndarray:
        """What is kept for the key, or else read() without arguments."""
        rows = self._kept.get(key)
        return self.keep(key, read()) if rows is None else rows

    def keep(self, key: Hashable, rows: np.ndarray) -> np.ndarray:
        """Keeps the array if it fits, and returns it."""
        with self._lock:
            if key not in self._kept and rows.nbytes <= self._free:
                self._kept[key] = rows
                self._free -= rows.nbytes
        return rows


class Rows(collections.abc.Sequence):
    """A sequence of float[n_i, d] that calls `read(keys[i])` for its i-th array each time."""

    def __init__(self, read: Callable[[Any], np.ndarray], keys: Iterable[Any]):
        self._read, self._keys = read, list(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._read(self._keys[index])
