"""Scaling studies: how a round's time changes with the number of workers."""
