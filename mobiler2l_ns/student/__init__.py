"""The student: rays to a view. Sampler, embedder and network are exported and import torch only."""
