"""Where to compute, as a person says it."""

import torch

from operators.errors import InputError


def usable_device(name: str | torch.device) -> torch.device:
    """The torch device of this name.

    Parameters
    ----------
    name
        Such as ``"cpu"`` or ``"cuda:1"``.

    Raises
    ------
    InputError
        If torch knows no such device or cannot use it here.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"The device {str(name)!r} cannot be used here ({reason}); try cpu.") from None
    return device
