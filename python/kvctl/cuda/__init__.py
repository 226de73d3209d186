"""Steps of a model on a CUDA device, captured once and replayed.

:class:`StepGraph` needs PyTorch, whose graphs it records: ``pip install 'kvctl[torch]'``.
:func:`read_uploads` says what steps send to the device.
"""

from .recorder import Recorder, Recording
from .step_graph import StepGraph
from .uploads import Uploads, read_uploads

__all__ = ["Recorder", "Recording", "StepGraph", "Uploads", "read_uploads"]
