"""What was made of a module's parameters for speed: kept until any module or parameter changes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from lucid.threads import in_forked_child

_made: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
_n_changes = 0
_lock = threading.RLock()  # again: a signal's handler may change a module while this thread is inside


def _renew_lock() -> None:
    # Another thread may have held it when this process was forked: nobody would ever release it.
    global _lock
    _lock = threading.RLock()


in_forked_child(_renew_lock)


def changed() -> None:
    """Forget all that was made: a module or parameter, any of them, is another one now."""
    global _n_changes
    with _lock:
        _n_changes += 1
        if _made:
            _made.clear()


def derived(owner: Any, make: Callable[[], Any]) -> Any:
    """Return what `make` returned for `owner` since the last change, or now: one value for an owner, which lives no longer than it."""
    try:
        return _made[owner]
    except KeyError:
        pass
    n_changes = _n_changes
    value = make()
    with _lock:
        if n_changes == _n_changes:  # or it was made, in part, of what is gone
            _made[owner] = value
    return value
