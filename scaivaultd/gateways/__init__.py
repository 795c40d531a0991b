"""The doors: NATS and REST in, events out, and the embedded nats-server where no NATS is configured."""
