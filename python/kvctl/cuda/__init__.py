"""Steps of a model on a CUDA device, captured once and replayed.

:class:`StepGraph` needs PyTorch, whose graphs it records: ``pip install 'kvctl[torch]'``.
"""

from .recorder import Recorder, Recording
from .step_graph import StepGraph

__all__ = ["Recorder", "Recording", "StepGraph"]
