"""scaivaultd: an asyncio daemon that obtains and renews certificates by ACME, asked over NATS."""

__version__ = "0.1.0"
