"""Layout: are the elements of a design, text, panels and objects, where the brief wants them?"""
