"""The ports a CA knocks at: http-01 answered by a listener of our own, and the sockets it stands on."""
