"""Files and folders: locks, atomic writes, reading text."""
import itertools, os, sys, time
from pathlib import Path

from support.script import fail

try:
    import fcntl
    lock_now = lambda f: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
except ImportError:     # on Windows
    import msvcrt
    lock_now = lambda f: msvcrt.locking(f.fileno(), msvcrt.LK_NBLCK, 1)

HELD = []                       # the open files of own(): one that is forgotten is closed, and its lock gone

def own(folder, what, wait=False):
    """Make a folder and keep other processes out of it until the returned file is closed or the process ends,
    however it ends. Who is second waits, or fails with the advice to use another `what`."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        HELD.append(lock := open(Path(folder) / ".lock", "ab"))
    except (OSError, ValueError) as e:
        fail(f"{what}: {folder} cannot be used: {getattr(e, 'strerror', e)}")
    for tries in itertools.count():
        try:
            lock_now(lock)
            return lock
        except (BlockingIOError, PermissionError):      # it is taken; the latter is Windows'
            if not wait:
                fail(f"{folder} is in use by another run; wait for it or use another {what}")
        except OSError:                                 # a file system without locks
            return lock
        if tries == 10:
            print(f"waiting for another run that uses {folder}", file=sys.stderr)
        time.sleep(0.1)

def write_atomic(*files):
    """path, write, path, write, ...: each write(f) fills a temporary file; then all take their names."""
    files = [(Path(path), Path(f"{path}.tmp"), write) for path, write in zip(files[::2], files[1::2])]
    try:
        for path, temporary, write in files:
            with open(temporary, "wb") as f:
                write(f)
                f.flush()
                os.fsync(f.fileno())
        for path, temporary, _ in files:
            os.replace(temporary, path)
    except (OSError, RuntimeError) as e:        # torch.save makes the latter of the former
        for _, temporary, _ in files:
            temporary.unlink(missing_ok=True)
        fail(f"cannot write {path}: {getattr(e, 'strerror', None) or e}")

def read_text(path):
    """The text of a UTF-8 file, line ends as they are."""
    try:
        return Path(os.path.expanduser(path)).read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as e:
        fail(f"cannot read {path or 'a file with no name'} as UTF-8 text: {getattr(e, 'strerror', e)}")
