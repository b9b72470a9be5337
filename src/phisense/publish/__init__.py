"""A model folder for others: files of llama.cpp, a Space, a model card."""
