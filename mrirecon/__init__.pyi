from .acquisition import Acquisition as Acquisition
from .acquisition import Decision as Decision
from .kspace import KSpace as KSpace
