"""Planogram: do the shelves show the products that the brief lists, in its order and number?"""
