"""Heads over a model's hidden states that draft for it: EAGLE's and Medusa's.

Compiling one needs TVM's compiler, training one needs torch; loading a compiled one needs neither.
"""

from .compiled import CompiledFeatureHead, CompiledMedusa, load

__all__ = ["CompiledFeatureHead", "CompiledMedusa", "load"]
