"""Load libkvctl.so, its functions with their types, and checks of their arguments."""
