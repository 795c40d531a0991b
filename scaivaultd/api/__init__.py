"""The contract with callers: messages, events, the command table, and how a request meets its handler."""
