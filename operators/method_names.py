"""Methods of reconstruction by name, before anything is imported that computes them."""

from collections.abc import Sequence
from dataclasses import dataclass

from operators.errors import InputError


@dataclass(frozen=True, slots=True)
class MethodNames:
    """What the methods of a package are called.

    Parameters
    ----------
    classical
        Those without trained weights.
    learned
        Those whose trained weights come with the package.
    """

    classical: Sequence[str]
    learned: Sequence[str]

    def __str__(self) -> str:
        of_weights = f", or with trained weights {', '.join(self.learned)}" if self.learned else ""
        return f"{', '.join(self.classical)}{of_weights}."

    def check(self, name: str) -> None:
        """Refuse a name that is none of them.

        Raises
        ------
        InputError
            If it is unknown.
        """
        if name not in (*self.classical, *self.learned):
            raise InputError(f"The method {name!r} is unknown; choose one of {self}")

    def weights_of(self, method: str | None, weights: str | None, default: str, *, with_codes: bool) -> str | None:
        """Which trained weights a command line asks for.

        Parameters
        ----------
        method, weights
            What it says, one of them or neither.
        default
            The method where it says nothing.
        with_codes
            Whether it asks for another dictionary, or for what sparse coding found.

        Returns
        -------
        str or None
            A file, or the name of a learned method; ``None`` for a classical one.

        Raises
        ------
        InputError
            If method and weights are both given, the method is unknown, or it is classical and has no codes.
        """
        if method is not None and weights is not None:
            raise InputError("--method and --weights both say what to reconstruct with; leave one of them out.")
        if weights is not None:
            return weights
        name = method or default
        self.check(name)
        if name in self.learned:
            return name
        if with_codes:
            raise InputError(
                f"--dictionary and --save-maps belong to convolutional sparse coding, and the method is {name}; "
                "choose weights of it, by --method or --weights."
            )
        return None
