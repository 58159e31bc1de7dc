"""The learned ranker: what a score is made of, and how it is learned from every engagement. NumPy only."""
