"""How far methods can be trusted on other data than they were made for: statistics, checks and a report."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
