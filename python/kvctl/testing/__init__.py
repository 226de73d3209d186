"""What helps to test with kvctl: import the module needed, such as kvctl.testing.cache_model."""
