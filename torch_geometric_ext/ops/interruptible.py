from concurrent.futures import ThreadPoolExecutor, wait
from threading import current_thread, main_thread
from typing import Any, Callable

import torch


def interruptible(op: Callable[..., Any], *args: Any) -> Any:
    """Call a long operator such that :obj:`KeyboardInterrupt` stops it.

    Python handles signals in the main thread only, and only between two
    bytecode instructions. Hence the operator runs in a second thread while the
    main thread waits.

    Args:
        op (callable): The operator. Its last argument is a :obj:`uint8` tensor
            with one element, or :obj:`None`. The operator needs to stop once
            this element is not zero.
        *args: The other arguments.
    """
    if torch.compiler.is_compiling() or current_thread() is not main_thread():
        return op(*args, None)
    cancel = torch.zeros(1, dtype=torch.uint8)
    with ThreadPoolExecutor(1) as executor:
        try:
            future = executor.submit(op, *args, cancel)
            # Windows handles no signal while a wait without a timeout lasts.
            while not wait([future], timeout=0.1).done:
                pass
            return future.result()
        except BaseException:
            cancel.fill_(1)
            raise
