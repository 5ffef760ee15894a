"""Configurations of trainings and evaluations at low field, in TOML."""

from dataclasses import dataclass
from typing import Any, Literal

from mrirecon.datasets import Scenarios, Source
from mrirecon.dictionaries import DrawnDictionaries
from operators import configuration
from operators.configuration import Candidate as Candidate
from operators.configuration import Model as Model
from operators.configuration import read_config as read_config


@dataclass(frozen=True, slots=True, kw_only=True)
class Data(configuration.Data):
    """Images, and who of the people in them serves for what; see `operators.configuration.Data`."""

    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(configuration.Plan):
    """How it is trained: `operators.configuration.Plan`, validated by default on the mean SSIM."""

    metric: Literal["ssim", "psnr_db", "loss"] = "ssim"
    metric_goal: Literal["min", "max"] = "max"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig(configuration.TrainingConfig):
    """A training, complete but for the folder it is kept in; see also `operators.configuration.TrainingConfig`.

    Parameters
    ----------
    scenario
        The scans that are drawn from the images.
    dictionaries
        Other dictionaries than the model's own that it is trained with; none by default.
    """

    data: Data
    scenario: Scenarios
    training: Plan
    dictionaries: DrawnDictionaries | None = None

    def identity(self) -> dict[str, Any]:
        """What defines the training beside its plan; as before there were dictionaries, where there are none."""
        described = configuration.TrainingConfig.identity(self)
        if self.dictionaries is None:
            del described["dictionaries"]
        return described


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition(configuration.Condition):
    """What methods are evaluated on: people of the test split, and one way to scan them.

    Parameters
    ----------
    contrasts
        Which of their slices; all by default.
    scenario
        How they are scanned; a range whose limits are equal is a fixed value.
    """

    contrasts: tuple[str, ...] | None = None
    scenario: Scenarios


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig(configuration.EvaluationConfig):
    """An evaluation, complete but for the folder of its results; see `operators.configuration.EvaluationConfig`."""

    data: Data
    conditions: tuple[Condition, ...]
