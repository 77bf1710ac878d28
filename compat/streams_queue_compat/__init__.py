"""The documented API of the sorted-set queue, on the engine of `streams_queue`.

`redis_queue_manager` and `chat_api_queue` hold what the documentation names. They are found at the documented import
path too (``bot_logic.services``), unless the application has a ``bot_logic`` package of its own: it then keeps its
two modules as one line each, ``from streams_queue_compat.chat_api_queue import *``.
"""
