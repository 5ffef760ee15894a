"""The methods of reconstruction by name, known before anything is imported that computes them."""

from operators.method_names import MethodNames

CLASSICAL_METHODS = ("fbp", "sirt", "os-sart", "cgls", "tv", "wavelet")
LEARNED_METHODS = ("deepgsr",)
DEFAULT_METHOD = "tv"
METHOD_NAMES = MethodNames(CLASSICAL_METHODS, LEARNED_METHODS)

METAL_METHODS = ("deepgsr",)
DEFAULT_METAL_METHOD = "nmar"
METAL_METHOD_NAMES = MethodNames(("li", "nmar", "tv"), METAL_METHODS)
