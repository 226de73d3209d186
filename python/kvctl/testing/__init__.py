"""Helpers for tests. Import the module you need, such as kvctl.testing.cache_model."""
