"""Several tasks trained together: weights they share, micro-batches of one task each, and what every task leaves."""
