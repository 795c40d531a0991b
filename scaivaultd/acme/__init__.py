"""The ACME protocol core: decides what comes next, never does it. No sockets, no sleeping, no clock, no chance."""
