"""The way down to libkvctl.so: loading it, and checking what is handed to it."""
