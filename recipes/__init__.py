"""Recipes: one folder a goal, with a README and a config.yaml on top of verl's ppo_trainer."""
