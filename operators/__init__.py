"""Physics and shared mathematics on tensors: linear operators, proximal maps, solvers, functionals.

Nothing in this package knows MR from CT, and nothing in it opens a measurement or an image file.
Names are loaded on first use, so that importing the package costs nothing.
"""

import logging

import lazy_loader

logging.getLogger(__name__).addHandler(logging.NullHandler())  # whoever wants the messages configures logging

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
