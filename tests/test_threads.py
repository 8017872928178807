"""cpu_threads: the same bits from any thread, fork or new process; BLAS as it was after."""

import multiprocessing
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import ROOT
from threadpoolctl import threadpool_info, threadpool_limits

import solvers
import sparsedis

RIGHT = {}


def blas_threads():
    return {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"}


def gradient():
    """All bits of a gradient of a small CNN, within cpu_threads(2)."""
    rng = np.random.default_rng(0)
    encoder, x = sparsedis.cnn(3), rng.random((23, 64, 64, 3)).astype(np.float32)
    params, state = encoder.init(rng)
    with solvers.cpu_threads(2):
        F, cache, _ = encoder.forward(params, state, x)
        grads = encoder.backward(cache, F)
    return b"".join(np.ascontiguousarray(g).tobytes() for g in (F, *grads.values()))


def right():
    if "bits" not in RIGHT:
        RIGHT["bits"] = gradient()
    return RIGHT["bits"]


def in_threads(count):
    """gradient() in so many other threads at once."""
    out = []
    threads = [threading.Thread(target=lambda: out.append(gradient())) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return out


@pytest.mark.parametrize("count", [1, 2])
def test_other_threads_get_the_same_bits_and_leave_blas_as_it_was(count):
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        assert all(bits == right() for bits in in_threads(count))
        assert blas_threads() == before


def test_the_first_to_enter_need_not_be_the_last_to_leave():
    entered, other_in, left = threading.Event(), threading.Event(), threading.Event()
    seen = []

    def other():
        entered.wait()
        with solvers.cpu_threads(2):
            other_in.set()
            left.wait()
            seen.append(blas_threads())

    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        thread = threading.Thread(target=other)
        thread.start()
        with solvers.cpu_threads(2):
            entered.set()
            other_in.wait()
        assert blas_threads() == {1}
        left.set()
        thread.join()
        assert seen == [{1}] and blas_threads() == before


def child(queue):
    queue.put((gradient() == right(), blas_threads()))


def without_own_threads(queue):
    queue.put(solvers.on_threads(abs, (-1, 2)))


def asked(context, target):
    """What a child process says; Empty where it hangs."""
    queue = context.Queue()
    process = context.Process(target=target, args=(queue,))
    process.start()
    try:
        return queue.get(timeout=60)
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("where", ["outside", "inside", "while another thread is inside"])
@pytest.mark.parametrize("how", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_child_processes_get_the_same_bits(how, where):
    if how == "fork" and not hasattr(os, "fork"):
        pytest.skip("no fork here")
    context = multiprocessing.get_context(how)
    right()
    with threadpool_limits(2, user_api="blas"):
        if where == "inside":
            with solvers.cpu_threads(2):
                same, after = asked(context, child)
                assert asked(context, without_own_threads) == [1, 2]  # a fork has no pool
            assert same and (how == "spawn" or after == {1})
        elif where == "outside":
            same, after = asked(context, child)
            assert same and (how == "spawn" or 2 in after)
        else:
            entered, leave = threading.Event(), threading.Event()

            def other():
                with solvers.cpu_threads(2):
                    entered.set()
                    leave.wait()

            thread = threading.Thread(target=other)
            thread.start()
            entered.wait()
            same, after = asked(context, child)
            leave.set()
            thread.join()
            assert same and (how == "spawn" or 2 in after)


FORKS = """
import multiprocessing, os, sys, threading
import numpy as np
import sparsedis
rng = np.random.default_rng(0)
encoder, x = sparsedis.cnn(6), rng.random((40, 64, 64, 3)).astype(np.float32)
params, state = encoder.init(rng)
def features():
    return encoder.forward(params, state, x)[0]
def child(queue):
    queue.put(np.array_equal(features(), right))
def busy():
    while True:
        features()
right, context = features(), multiprocessing.get_context("fork")
threading.Thread(target=busy, daemon=True).start()
for fork in range(int(sys.argv[1])):
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    assert queue.get(timeout=30), fork
    process.join()
print("good", flush=True)
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("forks", [8, pytest.param(150, marks=pytest.mark.slow)])
def test_no_fork_hangs_while_a_thread_is_in_an_encoder(forks):
    """In a process of its own, outside cpu_threads, where BLAS has all its threads."""
    done = subprocess.run(
        [sys.executable, "-c", FORKS, str(forks)], cwd=ROOT, capture_output=True, timeout=300)
    assert done.stdout == b"good\n"


INTERRUPTED = """
import os, signal, threading, time
import solvers
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored
begun = []
def block(i):
    if i == 0:  # blocks are at work
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    begun.append(i)
    time.sleep(0.2)
try:
    with solvers.cpu_threads(2):
        solvers.on_threads(block, range(1000))
except KeyboardInterrupt:
    print(len(begun) < 20)
"""


def test_blocks_that_are_not_begun_are_left_at_ctrl_c():
    line = [sys.executable, "-c", INTERRUPTED]
    assert subprocess.run(line, cwd=ROOT, capture_output=True, timeout=60).stdout == b"True\n"


def test_outside_all_is_serial_and_nested_blocks_are_too():
    names = solvers.on_threads(lambda i: threading.current_thread().name, range(8))
    assert set(names) == {threading.current_thread().name}
    with solvers.cpu_threads(3):
        names = solvers.on_threads(lambda i: threading.current_thread().name, range(8))
        assert threading.current_thread().name not in names
        nested = solvers.on_threads(lambda i: solvers.on_threads(abs, (-i, i)), (1, 2))
        assert nested == [[1, 1], [2, 2]]
