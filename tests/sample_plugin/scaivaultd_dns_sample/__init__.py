"""Plugins for scaivaultd to learn from: see the README."""
