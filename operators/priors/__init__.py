"""Priors: what is known of images beside the data, as maps that a reconstruction alternates with the physics."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
