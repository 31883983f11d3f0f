"""Ctrl-C and the system's wish that a process end, answered at a moment that loses nothing."""
import signal
import socket
import sys
import threading

from support.script import warn

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")     # Ctrl-C; a queue or a shutdown; the terminal is gone


class Stop:
    """with Stop() as stop: a first signal is noted in stop.signal, for the block to look at between
    two steps, and is answered at once by a line on stderr; a second one ends the block by
    SystemExit. Afterwards signals do what they did before. several: torchrun sends again what all
    processes have got, so that a second one means nothing."""

    def __init__(self, several=False, talks=True):
        self.signal = 0
        self.several = several
        self.talks = talks
        self.before = {}                    # number: its handler before

    def __enter__(self):
        if threading.current_thread() is not threading.main_thread():
            return self                     # Python lets no other thread handle signals
        for name in NAMES:
            number = getattr(signal, name, None)                        # Windows has no SIGHUP
            ignored = number is None or signal.getsignal(number) == signal.SIG_IGN
            if not ignored:                                             # nohup ignores SIGHUP
                self.before[number] = signal.signal(number, self.note)
        self.ear, self.mouth = socket.socketpair()
        self.mouth.setblocking(False)
        self.wakeup = signal.set_wakeup_fd(self.mouth.fileno(), warn_on_full_buffer=False)
        self.thread = threading.Thread(target=self.answer, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exception):
        if not self.before:
            return
        for number, handler in self.before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if self.signal and self.several:    # torchrun sends it to who ends a moment later
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.set_wakeup_fd(self.wakeup)
        self.mouth.close()
        self.thread.join()
        self.ear.close()

    def note(self, number, frame):
        """Python calls it in the main thread, as soon as that comes back from a long product."""
        if self.signal and not self.several:
            sys.exit(128 + number)
        self.signal = self.signal or number

    def answer(self):
        """A thread, which the system wakes with the signal's number whatever the main one does."""
        said = False
        while number := self.ear.recv(1):
            if number[0] in self.before and self.talks and not said:
                said = True
                again = "" if self.several else "; again to stop at once"
                warn(f"\nstopping after this step{again}")
