"""Runs that go wrong at random, and have to end right."""
