"""The steps as Python functions with typed arguments and results. The command line parses
arguments, calls one step, and renders its result.

Each step takes a recipe or a folder, reports its progress as events (`progress`), and returns a
frozen result (`results`) whose JSON is what the step writes to disk.
"""
