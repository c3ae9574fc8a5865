"""Between code with an event loop and code without one: how synchronous and asynchronous functions call each other.

Threads are daemons: a reward that hangs cannot keep the process from ending.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

Result = TypeVar("Result")


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """The coroutine's result; inside a running event loop it gets a thread with a loop of its own, and waits."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    return _in_thread(lambda: asyncio.run(coroutine)).result()


def is_async(function: Any) -> bool:
    """Whether a call gives an awaitable: a coroutine function, also inside functools.partial, as the `__call__` of an
    object, or behind decorators that use functools.wraps."""
    return _is_coroutine_function(function) or _is_coroutine_function(inspect.unwrap(function))


async def call(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """The result of any function, without blocking the event loop: a coroutine function runs in it, everything else
    in a thread; what that returns is awaited if it can be. A caller that is cancelled leaves the thread behind."""
    if _is_coroutine_function(function):
        return await function(*arguments, **keywords)
    result = await asyncio.wrap_future(_in_thread(lambda: function(*arguments, **keywords)))
    return await result if inspect.isawaitable(result) else result


def _is_coroutine_function(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _in_thread(function: Callable[[], Result]) -> Future[Result]:
    """Starts a thread; an executor's threads are no daemons. When the result is there, the thread holds nothing but it:
    whoever has it may let go of what was called and count on its memory."""
    future: Future[Result] = Future()
    future.set_running_or_notify_cancel()  # a cancelled caller does not cancel it
    to_call = [function]

    def work() -> None:
        loop = asyncio.new_event_loop()  # for code that asks for one, as it could in a script
        asyncio.set_event_loop(loop)
        try:
            deliver = partial(future.set_result, to_call.pop()())
        except (StopIteration, SystemExit) as error:  # asyncio cannot carry the first; no reward ends the process
            deliver = partial(future.set_exception, RuntimeError(f"{type(error).__name__} {error}".strip()))
        except BaseException as error:
            deliver = partial(future.set_exception, error)
        try:
            loop.close()
        finally:  # a reward may have left it running
            deliver()

    threading.Thread(target=work, name="reward", daemon=True).start()
    return future
