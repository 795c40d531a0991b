"""Servers that behave like the providers' at the socket, and judge every request they get."""
