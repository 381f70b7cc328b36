"""A full disk, near enough: files of this process cannot grow beyond a size."""

import contextlib
import resource


@contextlib.contextmanager
def file_limit(size: int):
    """Lets writing beyond `size` bytes of a file fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
