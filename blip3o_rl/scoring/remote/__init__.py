"""Rewards in another process: wire format, client, service, deployment."""
