"""From sparse-view CT sinograms, metal included, to images in Hounsfield units: read, reconstruct, write, simulate.

Names are loaded on first use, so that importing the package (and asking the command line for help) costs nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
