"""Rewards: what one is (api), how several become one number (rubric), and how a user names them (registry)."""
