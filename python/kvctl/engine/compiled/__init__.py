"""A compiled model: the functions of its library, and its forwards on a cache."""
