"""GenEval: does the image show the objects, counts, colors and positions that the prompt names?"""
