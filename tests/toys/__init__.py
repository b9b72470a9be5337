"""Toy encoder, projector, engine and language family: one object in one file each. Toys of the
other seams are in the tests that add them.
"""
