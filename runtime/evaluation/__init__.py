"""How good a model is: tasks with answers, perplexity, and the divergence of one model from another."""
