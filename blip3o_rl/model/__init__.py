"""BLIP3o-NEXT itself: token layout, policy, image tokenizer, renderer, model folder and pipeline. Knows no RL."""
