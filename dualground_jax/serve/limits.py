"""What a service takes. Nothing here imports more than the standard library: the flags read it."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a service; the flags of mode `serve` say more of those that they set.

    Attributes:
        uploads: at the same time.
        sentences: of a request.
        sentence_length: characters.
    """

    upload_mb: float = 2000.0
    video_minutes: float = 180.0
    store_gb: float = 20.0
    queue: int = 256
    rate: float = 20.0
    timeout: float = 60.0
    grace: float = 120.0
    decoders: int = 2
    uploads: int = 8
    sentences: int = 16
    sentence_length: int = 500

    @classmethod
    def of(cls, values: Any, decoders: int) -> 'Limits':
        """Those that flags have the names of, and so many processes that decode."""
        named = {field.name: getattr(values, field.name) for field in dataclasses.fields(cls)
                 if hasattr(values, field.name)}
        return cls(**named | dict(decoders=decoders))

    @property
    def upload_bytes(self) -> int:
        """Of an upload."""
        return int(self.upload_mb * 1e6)

    @property
    def video_seconds(self) -> float:
        """Of a video."""
        return self.video_minutes * 60

    @property
    def store_bytes(self) -> float:
        """Of uploads and features."""
        return self.store_gb * 1e9
