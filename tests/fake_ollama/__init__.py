"""A scriptable Ollama on 127.0.0.1: a real HTTP server whose answers convict a wrong cache hit.

Every answer is a function of everything that may change a model's output, so an answer served for
the wrong request differs from the right one. ``Fault`` describes what may go wrong on the way.
"""

from .faults import SEPARATORS, Fault
from .server import FakeOllama
from .world import Barrier, Logged

__all__ = ["SEPARATORS", "Barrier", "FakeOllama", "Fault", "Logged"]
