"""What was decided for a person, so that it can be shown and overridden."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Decision:
    """Something that the file did not say and that was decided for it, or a step that was taken.

    Parameters
    ----------
    name
        What was decided, in snake case, such as ``"fourier_sign"``.
    value
        What it was decided to be, as text.
    reason
        Why, in one sentence.
    override
        The option that decides otherwise, such as ``"--voxel-mm"``; ``None`` where there is none.
    warning
        Whether a person should look at it.
    """

    name: str
    value: str
    reason: str
    override: str | None = None
    warning: bool = False

    def __str__(self) -> str:
        change = f" Override with {self.override}." if self.override else ""
        return f"{self.name}: {self.value} — {self.reason}{change}"
