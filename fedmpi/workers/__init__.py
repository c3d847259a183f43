"""Commands, the worker's loop that obeys them, and the owner's handle on its workers."""
