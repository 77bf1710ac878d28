"""`streams_queue_compat.redis_queue_manager` at the documented import path."""

from streams_queue_compat.redis_queue_manager import *
