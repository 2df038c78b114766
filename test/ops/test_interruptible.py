import time
from _thread import interrupt_main
from threading import Thread, Timer

import pytest

from torch_geometric_ext.ops.interruptible import interruptible


def test_interruptible_results():
    assert interruptible(lambda x, cancel: (x, cancel.item()), 3) == (3, 0)

    def fail(cancel):
        raise TimeoutError('of the operator')

    with pytest.raises(TimeoutError, match='of the operator'):
        interruptible(fail)


def test_interruptible_is_interrupted(interrupts):
    stopped = []

    def wait(cancel):
        for _ in range(1000):
            time.sleep(0.01)
            if cancel.item() == 1:
                stopped.append(True)
                return

    Timer(0.1, interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        interruptible(wait)
    assert stopped == [True]


def test_interruptible_in_other_threads():
    out = []
    # Other threads receive no interrupt.
    thread = Thread(target=lambda: out.append(interruptible(lambda x: x)))
    thread.start()
    thread.join()
    assert out == [None]
