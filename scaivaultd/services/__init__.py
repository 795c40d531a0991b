"""What the daemon does: accounts, orders, certificates. Knows its neighbours only through `ports`."""
