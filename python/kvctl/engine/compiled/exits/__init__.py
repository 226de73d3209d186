"""Forwards of compiled models that give hidden states, or run a part of the layers."""
