"""Training data: the capture, its photos, new poses, and the pool of teacher views."""
