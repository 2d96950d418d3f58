"""Pruning: a trained student becomes smaller, and is distilled further. Imported by ns-prune-mobiler2l alone."""
