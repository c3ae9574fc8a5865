"""The verbs of the command line, by what they work on; `blip3o_rl.cli` puts them together."""
