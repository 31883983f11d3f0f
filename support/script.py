"""How every script ends when something is wrong."""
import os, re, shlex, subprocess, sys

def fail(message):
    """One line on stderr, exit status 2."""
    print("error:", " ".join(str(message).splitlines()), file=sys.stderr)
    sys.exit(2)

class Unusable(ValueError):
    """Something of a user's cannot be used. The message is all that there is to say of it."""

def script(main):
    """Decorator of every script's main(argv): what can end any of them, at any place, ends it in order."""
    def guarded(argv=None):
        for stream in (sys.stdout, sys.stderr):     # a terminal that cannot show a character shows a "?"
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")
        try:
            return main(argv)
        except KeyboardInterrupt:                   # Ctrl-C
            sys.exit(130)
        except BrokenPipeError:                     # a reader like head that has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except (OSError, Unusable) as e:            # a folder one may not enter, a name too long, ...
            fail(f"{e.filename}: {e.strerror}" if getattr(e, "filename", None) else e)
        except (MemoryError, RuntimeError) as e:
            if isinstance(e, MemoryError) or re.search("(out of|not enough|allocate) memory", str(e)):
                fail(f"not enough memory; smaller sizes need less ({e!s:.150})")
            raise
    return guarded

# A line that a shell takes for a command of these words.
command = lambda *words: (subprocess.list2cmdline if os.name == "nt" else shlex.join)(map(str, words))
