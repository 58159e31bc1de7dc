"""What the driver does in a thread of its own, beside the faults."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import ClassVar, Self

from stream_app.errors import StreamAppError


class Background(ABC):
    """Works in a thread of its own, from ``start`` to ``stop``, or as a context. The thread ends with the
    process, however that ends."""

    patience_s: ClassVar[float] = 30.0
    """Waited for the thread when it is to end; one that hangs then is left behind."""

    def __init__(self) -> None:
        self._ending = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name=type(self).__name__.lower(), daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; may be called more than once, and without a start."""
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join(self.patience_s)

    def check(self) -> None:
        """Raise StreamAppError when the work has failed: the run cannot go on without it."""
        if self._error is not None:
            name = type(self).__name__.lower()
            raise StreamAppError(f"{name} of the run failed: {self._error!r}") from self._error

    def _work(self) -> None:
        try:
            self._run()
        except Exception as error:  # noqa: BLE001  # whatever it is, the run must end on it
            self._error = error

    @abstractmethod
    def _run(self) -> None:
        """The thread's work: return once ``_ending`` is set."""
