"""One call at a time: between two calls an engine's state is whole, during a call it is not."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])


def exclusive(method: Method) -> Method:
    """Refuse the call while another one is under way: RuntimeError, and no change.

    That is a call from inside a step (by a policy, a drafter, a tokenizer), or from a second thread.
    """

    @wraps(method)
    def alone(self: Any, *args: Any, **kwargs: Any) -> Any:
        token = object()

        def leave() -> None:
            if self.calls.get("now") is token:
                del self.calls["now"]

        try:
            try:
                # Test and set in one operation, so that no other thread comes between.
                if self.calls.setdefault("now", token) is not token:
                    raise RuntimeError(
                        f"{method.__name__}() was called while another call of this engine is under way, from inside a "
                        "step or from another thread: use an engine from one thread, between its steps"
                    )
                return method(self, *args, **kwargs)
            finally:
                leave()
        finally:  # an interrupt may have come in the line above
            leave()

    return alone  # type: ignore[return-value]
