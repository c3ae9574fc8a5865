"""Between code with an event loop and code without one: how synchronous and asynchronous functions call each other."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """The coroutine's result; inside a running event loop it gets a thread with a loop of its own, and waits."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    results: list[Result] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(asyncio.run(coroutine))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def is_async(function: Any) -> bool:
    """Whether a call gives an awaitable: a coroutine function, also inside functools.partial, as the `__call__` of an
    object, or behind decorators that use functools.wraps."""
    return _is_coroutine_function(function) or _is_coroutine_function(inspect.unwrap(function))


async def call(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """The result of any function, without blocking the event loop: a coroutine function runs in it, everything else
    in a daemon thread; what that returns is awaited if it can be."""
    if _is_coroutine_function(function):
        return await function(*arguments, **keywords)
    result = await _in_thread(lambda: function(*arguments, **keywords))
    return await result if inspect.isawaitable(result) else result


def _is_coroutine_function(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


async def _in_thread(function: Callable[[], Any]) -> Any:
    """Runs a function in a daemon thread, which cannot keep the process from ending; if the caller is cancelled the
    result is dropped."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def deliver(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def work() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as caught:
            # A future cannot carry StopIteration, and a reward must not end the process.
            odd = isinstance(caught, (StopIteration, SystemExit))
            error = RuntimeError(f"{type(caught).__name__} {caught}".strip()) if odd else caught
        with contextlib.suppress(RuntimeError):  # the loop is gone when a timed-out reward answers after the end
            loop.call_soon_threadsafe(deliver, result, error)

    threading.Thread(target=work, name="reward", daemon=True).start()
    return await future
