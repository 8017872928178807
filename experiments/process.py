"""process.py -- how our processes live with others: closed streams, signals, a parent that dies.

    prepare()                   of run.py, before all else
    status_of(main, argv)       its exit status, also where a reader or Ctrl-C ends it early
    keep_memory()               what one step frees, the next one takes
    end_with_parent()           of a sweep's worker: it ends when the sweep is no more
"""
import ctypes
import functools
import os
import signal
import sys
import threading
import time


def prepare():
    """Go on without a stream that is closed; end on SIGTERM as on Ctrl-C; keep memory."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:                              # `2>&-`: its number is free and
            setattr(sys, name, open(os.devnull, mode))              # must not become a data file's
    signal.signal(signal.SIGTERM, interrupt)
    keep_memory()


def keep_memory():
    """Let glibc keep what is freed. By default it returns large blocks to the system, which zeroes
    them page by page when the next step asks for them: PyTorch's passes then take twice as long.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8      # of malloc.h
        libc.mallopt(M_TRIM_THRESHOLD, 2 ** 31 - 1)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_ARENA_MAX, 1)                                # a thread's own is not kept


def interrupt(number, frame):
    """What Ctrl-C does."""
    raise KeyboardInterrupt


def status_of(main, argv):
    """main's exit status, as a shell has it: a reader that has seen enough (`| head`) ends it
    without a word, Ctrl-C while it is not at work yet in one."""
    try:
        status = main(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush
        status = 141                                                # 128 + SIGPIPE
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        status = 130
    return status


@functools.cache
def end_with_parent():
    """End this process within a second of its parent: a killed sweep leaves no run at work.

    Files are written whole or not at all, so that a run may end at any moment.
    """
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
