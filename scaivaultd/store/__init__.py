"""Where state lives: documents with revisions, an outbox of events, leases; and the seal on secrets."""
