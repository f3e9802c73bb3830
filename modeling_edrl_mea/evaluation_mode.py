"""Evaluation mode for as long as somebody needs it, in any number of threads at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from weakref import WeakKeyDictionary

from torch import nn

_LOCK = Lock()
# Model → [how many are within, the modules that were in training before the first].
_WITHIN: WeakKeyDictionary[nn.Module, list] = WeakKeyDictionary()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A block in which dropout would change the answer. Every module is in its own mode again after the last of the
    threads that are within; a model in evaluation mode is not touched at all."""
    with _LOCK:
        within = _WITHIN.setdefault(model, [0, []])
        within[0] += 1
        if within[0] == 1:
            within[1] = [module for module in model.modules() if module.training]
            for module in within[1]:
                module.training = False
    try:
        yield
    finally:
        with _LOCK:
            within[0] -= 1
            if not within[0]:
                for module in within[1]:
                    module.training = True
                _WITHIN.pop(model, None)
