"""`python -m streams_queue.cli`: the command line without its script."""

from streams_queue.cli import main

main()
