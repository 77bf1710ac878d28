"""The demo's chat requests: made up, or one's own."""

from pathlib import Path
from typing import Annotated

import msgspec

from streams_queue.errors import ConfigurationError

Text = str | int
"""Ids come as numbers, too."""


class ChatMessage(msgspec.Struct):
    """One chat request; what a line of an input file may hold. Other fields are passed over."""

    message: Annotated[str, msgspec.Meta(min_length=1)]
    user_id: Text = "demo"
    source_type: Text = "demo"
    source_id: Text = "demo"
    response_token: Text = ""
    chat_id: Text = "1"
    chat_type: Text = "private"
    message_id: Text = "0"

    def arguments(self) -> dict[str, str]:
        """The arguments of `enqueue_chat_request`."""
        return {name: str(value) for name, value in msgspec.structs.asdict(self).items()}


def made_up(count: int) -> list[ChatMessage]:
    """So many requests of a few users."""
    return [
        ChatMessage(message=f"Question {n}: what is the answer?", user_id=f"user-{n % 23}", message_id=n)
        for n in range(1, count + 1)
    ]


def read(path: Path) -> list[ChatMessage]:
    """The requests in a file, one JSON object a line; empty lines are passed over.

    Raises:
        ConfigurationError: the file cannot be used; names the line and the reason.
    """
    messages: list[ChatMessage] = []
    decode = msgspec.json.Decoder(ChatMessage).decode
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                messages.append(decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{path}, line {number}: {error}") from None
    if not messages:
        raise ConfigurationError(f'{path} holds no messages: write one JSON object a line, such as {{"message": "Hi"}}')
    return messages
