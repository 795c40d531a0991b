"""The outside world as a client: CAs over HTTPS, and where secrets are kept."""
