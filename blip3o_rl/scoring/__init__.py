"""Rewards: what they are, how they are combined, where they are found."""
