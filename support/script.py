"""How every script begins and ends: what it prints, and what it does when something is wrong."""
import codecs
import functools
import os
import re
import shlex
import subprocess
import sys
from contextlib import contextmanager


class Unusable(ValueError):
    """Something of a user's cannot be used. The message is all that there is to say of it."""


# ---- Printing. What cannot be shown does not end a run.

def say(line="", end="\n"):
    """Print to standard output, at once. Returns whether it could be shown: who only prints may
    stop when nobody reads, who trains goes on."""
    return write_to(sys.stdout, line + end)


def warn(line):
    """Print a line to standard error. Returns whether it could be shown."""
    return write_to(sys.stderr, line + "\n")


def write_to(stream, text):
    """Write to a stream of any kind: closed, without an encoding, a pipe whose reader has left."""
    try:
        try:
            stream.write(text)
        except UnicodeError:                # an encoding that cannot be changed
            stream.write(text.encode("ascii", "replace").decode("ascii"))
        stream.flush()
        return True
    except BlockingIOError:                 # a reader that is slow gets the rest with the next line
        return True
    except OSError:
        silence(stream)
        return False
    except Exception:                       # None, a closed stream, an object of somebody's own
        return False


def silence(stream):
    """Let a stream that is broken lead nowhere, or each later write would fail, and the last one,
    when Python ends, change the exit status."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError, AttributeError):
        pass                                # it is no file of the operating system's


def on_terminal(stream=None):
    """Whether a stream (default: standard output) is a terminal: a line may be overwritten."""
    try:
        return (stream or sys.stdout).isatty()
    except (AttributeError, ValueError, OSError):
        return False


def command(*words):
    """A line that a shell takes for a command of these words."""
    words = [str(word) for word in words]
    if os.name == "nt":
        return subprocess.list2cmdline(words)
    return shlex.join(words)


# ---- Ending

def fail(message):
    """End a script: one line on standard error, exit status 2. Libraries raise Unusable instead."""
    warn("error: " + " ".join(str(message).splitlines()))
    sys.exit(2)


def script(main):
    """Decorator of every script's main(argv). What can end any of them, at any place, ends it in
    order; the streams' settings are in the end what they were before."""
    @functools.wraps(main)
    def guarded(argv=None):
        with streams_that_show_all():
            try:
                return main(argv)
            except KeyboardInterrupt:       # Ctrl-C
                sys.exit(130)
            except BrokenPipeError:         # a reader like head that has seen enough
                silence(sys.stdout)
                sys.exit(141)
            except (OSError, Unusable) as e:
                fail(in_one_line(e))
            except (MemoryError, RuntimeError) as e:
                if not is_lack_of_memory(e):
                    raise
                fail(f"not enough memory; smaller sizes need less ({e!s:.150})")
    return guarded


def in_one_line(error):
    """What an exception says, with the file that it is about."""
    if getattr(error, "filename", None):
        return f"{error.filename}: {error.strerror}"
    return str(error)


def is_lack_of_memory(error):
    """Also torch's, which are RuntimeErrors."""
    if isinstance(error, MemoryError):
        return True
    return re.search("(out of|not enough|allocate) memory", str(error)) is not None


@contextmanager
def streams_that_show_all():
    """A text that goes into a file or a pipe keeps its characters: an encoding that lacks some
    gives way to UTF-8. A terminal shows a "?" for what it cannot show."""
    before = []
    for stream in (sys.stdout, sys.stderr):
        encoding = getattr(stream, "encoding", None)
        if encoding and hasattr(stream, "reconfigure"):
            before.append((stream, encoding, stream.errors))
            if not on_terminal(stream) and not is_unicode(encoding):
                encoding = "utf-8"
            set_encoding(stream, encoding, "replace")
    try:
        yield
    finally:
        for stream, encoding, errors in before:
            set_encoding(stream, encoding, errors)


def is_unicode(encoding):
    return codecs.lookup(encoding).name.startswith("utf")


def set_encoding(stream, encoding, errors):
    try:
        stream.reconfigure(encoding=encoding, errors=errors)
    except (OSError, ValueError):
        pass                                # closed, or nobody reads it: write_to() sees to that
