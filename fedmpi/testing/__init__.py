"""For tests of what goes wrong: see `faults`."""
