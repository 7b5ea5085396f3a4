"""Hear SIGTERM and Ctrl-C, and end between two steps instead of in the middle of one."""

__all__ = ['Stopped', 'Stop']

import signal
import threading

class Stopped(Exception):
    "A run that ended because it was asked to; everything is saved."
    def __init__(self,
        message: str,
        number: int, # of the signal
    ):
        super().__init__(message)
        self.status = 128 + number # : 130 after Ctrl-C, 143 after SIGTERM

class Stop:
    "Remember that the process was asked to end (SIGTERM, Ctrl-C), for whoever looks at `number`; 0 is: go on."
    def __init__(self): self.number, self._before = 0, {}

    def _hear(self, number, frame):
        if number == self.number == signal.SIGINT: raise KeyboardInterrupt # the second Ctrl-C
        self.number = number

    def __enter__(self):
        if threading.current_thread() is threading.main_thread(): # Python lets no other thread listen
            self._before = {n: signal.signal(n, self._hear) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error):
        for number, handler in self._before.items(): signal.signal(number, handler)
