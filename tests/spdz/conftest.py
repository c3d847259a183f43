"""Every transport, for the tests of this folder."""

from tests.comm.worlds import folder, world

__all__ = ["folder", "world"]
