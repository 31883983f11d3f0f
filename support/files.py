"""Files and folders: locks, files that are whole or not there, rows appended, reading text."""
import itertools
import os
import time
from pathlib import Path

from support.script import Unusable, warn

try:
    import fcntl
except ImportError:             # on Windows
    import msvcrt
    fcntl = None


# ---- Folders with one owner

class Lock:
    """A folder that is this process's own, until release(), the end of a with statement, or the
    end of the process, however it ends."""
    def __init__(self, file):
        self.file = file

    def release(self):
        self.file.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.release()


def own(folder, what, wait=False):
    """Make a folder and keep everybody else out of it, threads of this process among them, until
    the returned Lock is released. Who is second waits, or gets Unusable with the advice to use
    another `what`. Use it in a with statement: then it ends with what it is for."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        file = open(Path(folder) / ".lock", "ab")
    except (OSError, ValueError) as e:
        raise Unusable(f"{what}: {folder} cannot be used: {reason(e)}") from e
    try:
        wait_for(file, folder, what, wait)
    except BaseException:       # Ctrl-C while it waits
        file.close()
        raise
    return Lock(file)


def wait_for(file, folder, what, wait):
    """Lock the file of a folder, or raise Unusable if that is taken and we are not to wait."""
    for tries in itertools.count():
        if lock_now(file):
            return
        if not wait:
            raise Unusable(f"{folder} is in use by another run; wait for it or use another {what}")
        if tries == 10:
            warn(f"waiting for another run that uses {folder}")
        time.sleep(0.1)


def lock_now(file):
    """Try to lock a file. Returns whether it is ours."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):      # it is taken; the latter is Windows'
        return False
    except OSError:             # a file system without locks: nobody is kept out
        pass
    return True


# ---- Whole files

def write_atomic(path, write):
    """Write one file, as write_together() does."""
    write_together({path: write})


def write_together(writers):
    """Write files, {path: write}: each write(f) fills a temporary file, open for bytes; when all
    are whole they take their names. Until then, whatever happens, the old ones are there.
    A link stays one: the file that it points to is replaced. Raises Unusable, with the operating
    system's words, if that fails."""
    filled = []
    try:
        for path, write in writers.items():
            target = real_file(path)
            temporary = target.with_name(f"{Path(path).name}.tmp")
            filled.append((path, temporary, target))
            fill(temporary, write)
        for path, temporary, target in filled:
            os.replace(temporary, target)
    except (OSError, RuntimeError) as e:
        if not is_about_a_file(e):
            raise
        raise Unusable(f"cannot write {path}: {reason(e)}") from e
    finally:
        for _, temporary, _ in filled:
            remove(temporary)


def real_file(path):
    """The file behind a path that may be a link, or will be there. Raises OSError if it is no file,
    since a device or a folder cannot be replaced by one."""
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise OSError(f"{target} is not a file")
    return target


def fill(path, write):
    """Write a file and wait until it is on the disk."""
    with open(path, "wb") as f:
        write(f)
        f.flush()
        os.fsync(f.fileno())


def remove(path):
    """Remove a file that may be gone."""
    try:
        path.unlink(missing_ok=True)
    except OSError:             # a disk that is not there any more
        pass


def is_about_a_file(error):
    """Whether writing failed, or what was to be written could not be had (no memory, say)."""
    return os_error(error) is not None or "PytorchStreamWriter" in str(error)


def os_error(error):
    """The operating system's error behind an exception, or None. torch.save raises a RuntimeError
    about its own source while it handles the OSError that says what is the matter."""
    while isinstance(error, RuntimeError):
        error = error.__cause__ or error.__context__
    return error if isinstance(error, OSError) else None


def reason(error):
    """Why a file could not be used, in the operating system's words if it has some."""
    known = os_error(error)
    if known is not None:
        return known.strerror or str(known)
    if isinstance(error, RuntimeError):
        return "it could not be written whole"
    return str(error)


# ---- Files that grow by rows, while others read them

def append_line(path, line):
    """Append a line to a text file, all of it or nothing, so that who follows the file sees whole
    rows. Nothing is held open. Raises Unusable if it cannot be written."""
    data = (line + "\n").encode()
    try:
        with open(path, "ab", buffering=0) as f:
            size = f.seek(0, os.SEEK_END)
            try:
                write_whole(f, data)
            except OSError:
                f.truncate(size)
                raise
    except OSError as e:
        raise Unusable(f"cannot write {path}: {reason(e)}") from e


def write_whole(file, data):
    """Write bytes to an unbuffered file, which may take a part of them at a time."""
    while data:
        data = data[file.write(data):]


def keep_lines(path, keep):
    """Keep the lines of a text file for which keep(line) is true; the others go, and so does a last
    one that is not whole. If those that stay are the first ones the file is cut in place, and who
    follows it can go on. No file: nothing to do. Raises Unusable if it cannot be written."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return
    except OSError as e:
        raise Unusable(f"cannot read {path}: {reason(e)}") from e
    whole = data.split(b"\n")[:-1]          # after the last line break: nothing, or half a line
    kept = b"".join(line + b"\n" for line in whole if keep(line.decode("utf-8", "replace")))
    if kept == data:
        return
    if not data.startswith(kept):
        write_atomic(path, lambda f: f.write(kept))
        return
    try:
        os.truncate(path, len(kept))
    except OSError as e:
        raise Unusable(f"cannot write {path}: {reason(e)}") from e


# ---- Reading

def read_text(path):
    """The text of a UTF-8 file, line ends as they are. Raises Unusable if it cannot be read."""
    try:
        return Path(os.path.expanduser(path)).read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as e:
        name = path or "a file with no name"
        raise Unusable(f"cannot read {name} as UTF-8 text: {reason(e)}") from e
