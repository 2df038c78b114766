"""Long operators that can be interrupted from the keyboard."""

from concurrent.futures import ThreadPoolExecutor, wait
from threading import current_thread, main_thread
from typing import Any, Callable

import torch


def interruptible(op: Callable[..., Any], *args: Any) -> Any:
    """Calls an operator in a thread of its own, and has it stop if waiting
    for it is interrupted. Its last argument is a tensor to watch: it stops as
    soon as that is not zero any more.

    Python sees an interrupt between two of its own instructions only, and in
    the main thread only. Operators give up the lock of the interpreter.
    """
    if torch.compiler.is_compiling() or current_thread() is not main_thread():
        return op(*args, None)
    cancel = torch.zeros(1, dtype=torch.uint8)
    with ThreadPoolExecutor(1) as executor:
        try:
            future = executor.submit(op, *args, cancel)
            # Without a timeout, no interrupt is seen on Windows.
            while not wait([future], timeout=0.1).done:
                pass
            return future.result()
        except BaseException:
            cancel.fill_(1)
            raise
