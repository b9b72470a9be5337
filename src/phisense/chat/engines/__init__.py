"""The kinds of engines: what each opens, and how. The engines themselves are imported when they are
opened, so that one can be chosen before torch or llama.cpp is loaded.
"""
