import time
from contextlib import contextmanager
from typing import Dict, Iterator

OTHER = 'other'


class Clock:
    """Measure the seconds of a search and of its parts.

    Attributes:
        parts (Dict[str, float]): The seconds of finished parts.
    """

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.parts: Dict[str, float] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the seconds of a block to a part."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.parts[name] = self.parts.get(name, 0.0) + seconds

    def seconds(self, unfinished: float = 0.0) -> Dict[str, float]:
        """Return the seconds of all parts, and as :obj:`"other"` those of no
        part.

        Args:
            unfinished (float, optional): The seconds of an unfinished part.
                (default: :obj:`0.0`)
        """
        total = time.perf_counter() - self.start
        other = total - sum(self.parts.values()) - unfinished
        return {**self.parts, OTHER: other}

    def resume(self, seconds: Dict[str, float], unfinished: float) -> None:
        """Add the seconds of an interrupted search, as :meth:`seconds`
        returned them.
        """
        self.start -= sum(seconds.values()) + unfinished
        self.parts = {k: x for k, x in seconds.items() if k != OTHER}
