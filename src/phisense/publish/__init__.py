"""Publication of a model folder: GGUF files for llama.cpp, a Space, a model card."""
