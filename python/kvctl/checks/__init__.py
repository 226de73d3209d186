"""Checks of a model or a rule: bitwise equal logits, losslessness, the precision of K and V."""
