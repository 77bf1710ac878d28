"""`streams_queue_compat.chat_api_queue` at the documented import path."""

from streams_queue_compat.chat_api_queue import *
