"""The methods of reconstruction by name, known before anything is imported that computes them."""

from operators.errors import InputError

CLASSICAL_METHODS = ("adjoint", "cg-sense", "tv", "wavelet")
LEARNED_METHODS = (
    "csc",
    "csc-dictionaries",
    "csc-v1",
    "csc-scalar",
    "csc-published",
    "unet",
    "modl",
    "varnet",
    "tv-maps",
)
DEFAULT_METHOD = "tv"


def check_method_name(name: str) -> None:
    """Refuse a name that is none of the methods.

    Raises
    ------
    InputError
        If it is unknown.
    """
    if name not in (*CLASSICAL_METHODS, *LEARNED_METHODS):
        raise InputError(
            f"The method {name!r} is unknown; choose one of {', '.join(CLASSICAL_METHODS)}, or with trained weights "
            f"{', '.join(LEARNED_METHODS)}."
        )
