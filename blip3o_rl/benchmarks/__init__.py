"""How fast a step's stages are on this machine, next to the original's procedure; cheaper settings of rendering."""
