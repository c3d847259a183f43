"""Frames on the wire, two transports for them, trees over them, and polite waiting."""
