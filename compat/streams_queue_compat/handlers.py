"""What a chat worker does with a request: the handler that was set, or the services of the application's own
package.
"""

import importlib
import os
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any, cast

from streams_queue.errors import ConfigurationError
from streams_queue_compat.requests import QueuedRequest

Handler = Callable[[QueuedRequest], Awaitable[Any]]
"""``async (QueuedRequest) -> response text``"""

VARIABLE = "CHAT_API_HANDLER"
_HELP = f"call configure(handler), or set {VARIABLE}=module:function"


def find_handler() -> Handler | None:
    """The function that ``CHAT_API_HANDLER`` names; None when it names none.

    Raises:
        ConfigurationError: it cannot be imported.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    module, colon, function = named.partition(":")
    if not (module and colon and function):
        raise ConfigurationError(f"{VARIABLE}={named!r} is not module:function")
    try:
        handler = getattr(importlib.import_module(module), function)
    except Exception as error:
        raise ConfigurationError(f"{VARIABLE}={named!r} cannot be imported: {error!r}") from error
    if not callable(handler):
        raise ConfigurationError(f"{VARIABLE}={named!r} is not a function")
    return cast(Handler, handler)


def _service(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"bot_logic.services.{name}")
    except ImportError as error:
        raise ConfigurationError(
            "nothing says how to answer a chat request: "
            f"bot_logic.services.{name} cannot be imported ({error}); {_HELP}"
        ) from error


class Services:
    """The three functions of the application's own package, bound when the worker starts.

    Raises:
        ConfigurationError: a module or a function is missing.
    """

    def __init__(self) -> None:
        self.send_chat_message = _function("api_service", "send_chat_message")
        self.update_to_completed_reaction = _function("reaction_service", "update_to_completed_reaction")
        self.send_response = _function("response_service", "send_response")

    async def answer(self, request: QueuedRequest, text: str) -> None:
        """Send a text to where the request came from."""
        destination = {
            "bot_token": request.response_token,
            "chat_id": request.chat_id,
            "chat_type": request.chat_type,
        }
        await self.send_response(request.source_type, request.source_id, text, destination)

    async def react(self, request: QueuedRequest) -> None:
        """Mark the request's message as done."""
        await self.update_to_completed_reaction(
            request.source_type, request.message_id, request.response_token, request.chat_id
        )


def _function(module: str, name: str) -> Callable[..., Awaitable[Any]]:
    found = getattr(_service(module), name, None)
    if found is None:
        raise ConfigurationError(f"bot_logic.services.{module} has no {name}; {_HELP}")
    return cast(Callable[..., Awaitable[Any]], found)
