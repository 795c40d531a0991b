"""What the guided run and the tests stand on when no real CA is at hand; never part of a running daemon."""
