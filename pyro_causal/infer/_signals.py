"""Stopping between two steps instead of within one."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["Signals"]


class Signals:
    """Hold back Ctrl-C and SIGTERM until `check`; a second one acts at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            self.__exit__()
            signal.raise_signal(number)
        self.received = number

    def check(self) -> None:
        """Raise ``KeyboardInterrupt`` if a signal has come."""
        if self.received is not None:
            raise KeyboardInterrupt
