"""Training heads: prompts, answers of the target with its hidden states, and the training itself.

Collecting needs no more than a compiled target; training needs torch.
"""
