"""The flags that say what is trained on."""

from typing import Any, Self

import pydantic
from pydantic import Field

from Data.entry import DatasetEntry
from Data.registry import DATASETS, DEFAULT_DATA_DIR
from Utils.config import Config, refuse_unread, with_defaults


class DataConfig(Config):
    """What :func:`Data.load_dataset` needs to know, apart from the seed.

    After validation every option that the dataset reads has its value, and every other is
    ``None``, but for ``workers``, which may be given for any.

    Raises:
        UserError: an unknown dataset.
        pydantic.ValidationError: an option that the dataset does not read.
    """

    dataset: str = Field("digits", description="The data, listed above.")
    data_dir: str = Field(DEFAULT_DATA_DIR, description="Folder with the downloaded data sets.")
    workers: int | None = Field(
        None,
        ge=0,
        description="Processes that decode image files; data in memory need none. "
        "With --tpu, the most cores to train on.",
    )
    train_size: int | None = Field(None, ge=1, description="Training examples to draw.")
    test_size: int | None = Field(None, ge=1, description="Test examples to draw.")
    train_fraction: float | None = Field(
        None, gt=0, lt=1, description="Part of all modular sums that is trained on."
    )
    modulus: int | None = Field(None, ge=2, description="Of modular-addition.")
    bits: int | None = Field(None, ge=1, description="Bits of an input of sparse-parity.")
    parity_bits: int | None = Field(
        None, ge=1, description="How many of them decide the class of sparse-parity."
    )
    dimension: int | None = Field(None, ge=1, description="Components of a Gaussian input.")
    classes: int | None = Field(
        None, ge=2, description="Classes of gaussian-mixture; class folders of imagenet."
    )
    separation: float | None = Field(
        None, ge=0, description="Length of the class means of gaussian-mixture."
    )
    teacher_width: int | None = Field(None, ge=1, description="Hidden neurons of the teacher.")
    noise: float | None = Field(
        None, ge=0, description="Standard deviation of the noise on the teacher's training targets."
    )

    @property
    def data_options(self) -> dict[str, Any]:
        """The options that the dataset reads, by field name."""
        return {name: getattr(self, name) for name in DATASETS[self.dataset].options}

    @property
    def data_entry(self) -> DatasetEntry:
        """Describes the data (shape, classes, task) without loading them."""
        return DATASETS[self.dataset].configured(self.data_options)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _fill_in_the_datasets_defaults(cls, values: dict[str, Any]) -> dict[str, Any]:
        name = values.get("dataset") or cls.model_fields["dataset"].default
        known = isinstance(name, str) and name in DATASETS
        return with_defaults(values, DATASETS[name].options) if known else values

    @pydantic.model_validator(mode="after")
    def _check_data_options(self) -> Self:
        # Commands of neural-mechanics have --workers everywhere: it is welcome, as it changes
        # no number.
        known = DATASETS[self.dataset]  # raises if unknown
        reads = {"dataset", "data_dir", "workers", *known.options}
        refuse_unread(self, DataConfig.model_fields, reads, f"--dataset {self.dataset}")
        if self.bits and self.parity_bits and self.parity_bits > self.bits:
            raise ValueError(
                f"--parity-bits {self.parity_bits}: there are only --bits {self.bits}; "
                "choose at most as many"
            )
        return self
