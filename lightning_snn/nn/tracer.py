"""A tracer that other threads do not notice."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import fx, nn

# Traces that overlap in time would restore each other's changes of `nn.Module` in the wrong order.
_LOCK = threading.RLock()


class ThreadTracer(fx.Tracer):
    """Record the calls of the thread that traces, and no others.

    While it traces, `torch.fx` has `nn.Module.__call__` and `nn.Module.__getattr__` ask the tracer, in all threads of
    the process. A module that another thread runs meanwhile is not part of the traced network, and is run as it is.
    """

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        with _LOCK:
            self._thread = threading.get_ident()
            return super().trace(root, concrete_args)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)
