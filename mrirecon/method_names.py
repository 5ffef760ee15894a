"""The methods of reconstruction by name, known before anything is imported that computes them."""

from operators.method_names import MethodNames

CLASSICAL_METHODS = ("adjoint", "cg-sense", "tv", "wavelet")
LEARNED_METHODS = (
    "csc",
    "csc-dictionaries",
    "csc-published",
    "csc-v1",
    "csc-scalar",
    "unet",
    "modl",
    "varnet",
    "tv-maps",
    "deepgsr",
)
DEFAULT_METHOD = "csc"
METHOD_NAMES = MethodNames(CLASSICAL_METHODS, LEARNED_METHODS)
