"""The flags that say which model is built."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import Field

from Models.parametrization.abc_file import ROLES, layers_of, parse_abc, read_inline, roles_in
from Models.parametrization.base_shapes import check_base_shapes
from Models.parametrization.exponents import Role
from Models.parametrization.registry import find_parametrization
from Models.registry import MODELS, NONLINEARITIES, ModelEntry, find_model
from Utils.config import Config, Names, as_typed, refuse_unread, with_defaults
from Utils.errors import UserError

_PARAMETRIZATION = frozenset({"param", "abc", "roles", "base_width", "base_shapes"})
_GENERAL = _PARAMETRIZATION | {
    *("model", "model_class", "dtype", "seed", "init_seed", "model_dir", "restore_path")
}
"""What every registered model reads."""

_REFERENCE_WIDTH = 64

_LATER = _PARAMETRIZATION | {"init_seed"}
"""What the first runs did not save."""

_USERS = _GENERAL - {"model_class"}
"""What a function of the user's reads."""


INFINITE: Literal["inf"] = "inf"
"""The width of a network that is known by its kernels alone."""


def _number_or_infinite(value: Any) -> Any:
    if value is None or value == INFINITE:
        return value
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not number.is_integer() or number < 1:
        raise ValueError("must be a whole number from 1 on, or inf")
    return int(number)


Width = Annotated[
    int | Literal["inf"] | None,
    pydantic.BeforeValidator(_number_or_infinite),
    as_typed("INT|inf"),
]


class ModelConfig(Config):
    """What :func:`Models.build_model` needs to know, apart from the data's shape.

    After validation every option that the model reads has its value, unless it follows from
    others, and every other is what it is when left out.

    Raises:
        UserError: an unknown model or nonlinearity.
        pydantic.ValidationError: an option that the model does not read.
    """

    model_config = pydantic.ConfigDict(protected_namespaces=())

    model: str = Field(
        "conv",
        description="A model listed above, or your own: path/to/file.py:function or "
        "package.module:function; the function gets (input_shape, num_classes).",
    )
    model_class: Literal["default", "tinyimagenet", "imagenet"] = Field(
        "default",
        description="Where --model is looked up: small ones, VGGs and ResNets for small images, "
        "or torchvision's for large images.",
    )
    depth: int | None = Field(
        None,
        ge=1,
        description="Layers with weights, the classifier included; blocks of a transformer.",
    )
    width: Width = Field(
        None,
        description="Neurons or channels of each hidden layer or token; inf: the limit of the "
        "same network as they grow, trained in function space (--param ntk, sp-lr1n or hybrid:s).",
    )
    nonlinearity: str | None = Field(
        None, description="The elementwise function after each hidden layer, listed above."
    )
    bias: bool = Field(True, description="Whether linear and convolutional layers have a bias.")
    heads: int | None = Field(None, ge=1, description="Attention heads of a transformer.")
    kv_heads: int | None = Field(
        None, ge=1, description="Heads with keys and values of their own; all if left out."
    )
    positions: Literal["learned", "rope", "none"] | None = Field(
        None, description="How a transformer knows a token's place: added, rotated, or not."
    )
    qk_norm: bool = Field(False, description="Normalise each head's queries and keys.")
    norm: Literal["layernorm", "rmsnorm"] | None = Field(
        None, description="A transformer's normalisation before each part of a block."
    )
    mlp: Literal["mlp", "swiglu"] | None = Field(
        None, description="A transformer's hidden layer: plain or gated."
    )
    patch_size: int | None = Field(
        None, ge=1, description="Side of the square patches that are a vit's tokens, in pixels."
    )
    pretrained: bool = Field(
        False, description="Begin with torchvision's weights (--model-class imagenet)."
    )
    model_dir: str = Field(
        "pretrained_models", description="Folder with the downloaded weights of --pretrained."
    )
    restore_path: str | None = Field(
        None,
        description="Begin, at step 0, with the weights in this file: a checkpoint or a state "
        "dict.",
    )
    param: str | None = Field(
        None,
        description="Parametrization, listed above: how initial weights and learning rates depend "
        "on the width; prints every parameter's role and scales before training.",
    )
    abc: str = Field("", description="Instead of --param: a YAML file of exponents a, b, c.")
    roles: Names = Field(
        (),
        description="Roles that shapes do not tell, as in head.weight=readout: input, hidden, "
        "query, readout, vector or finite.",
    )
    base_width: int | None = Field(
        None,
        ge=1,
        description="Scale relative to this width, where the network is as without --param.",
    )
    base_shapes: str = Field(
        "", description="Instead of --base-width: a file of base shapes (.bsh) of the library mup."
    )
    dtype: Literal["float32", "float64"] = Field(
        "float32", description="Number format of parameters, inputs and gradients."
    )
    seed: int = Field(1, ge=0, description="Every stream of randomness is derived from it.")
    init_seed: int | None = Field(
        None,
        ge=0,
        description="Of the initial weights instead of --seed, for networks that differ in nothing "
        "else: they have the same examples in the same order.",
    )

    @classmethod
    def saved_in(cls, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a model in a saved configuration.

        Args:
            hyperparameters: of a run; one made before a flag existed has its default.

        Raises:
            KeyError: a field is missing.
        """
        fields = [f for f in cls.model_fields if f in hyperparameters or f not in _LATER]
        return {field: hyperparameters[field] for field in fields}

    @property
    def is_infinite(self) -> bool:
        """Whether there are no weights, and kernels in their place."""
        return self.width == INFINITE

    def at_reference_width(self) -> Self:
        """The same at a width that many numbers divide, for what is alike at all of them."""
        return self.model_copy(update={"width": _REFERENCE_WIDTH})

    @property
    def weights_seed(self) -> int:
        """From which initial weights are drawn."""
        return self.seed if self.init_seed is None else self.init_seed

    @property
    def finite_width(self) -> int | None:
        """The width, of a model with weights.

        Raises:
            UserError: it is infinite.
        """
        if self.width == INFINITE:
            raise UserError(
                "--width inf: an infinitely wide network has kernels and no weights, which this "
                "needs; give a number for --width"
            )
        return self.width

    @property
    def is_parametrized(self) -> bool:
        """Whether initial weights and learning rates follow a parametrization."""
        return bool(self.param or self.abc)

    @property
    def given_roles(self) -> dict[str, Role]:
        """Roles by the names or patterns of parameters: the model's, the file's, the flag's."""
        known = {} if self.is_user_model else dict(self.entry.roles)
        from_file = roles_in(self.abc) if self.abc else {}
        return {**known, **from_file, **dict(map(_role, self.roles))}

    @property
    def is_user_model(self) -> bool:
        """Whether the model is a function of the user's, not a registered one."""
        return ":" in self.model

    @property
    def entry(self) -> ModelEntry:
        """The registered model; raises :class:`UserError` for an unknown or a user's one."""
        return find_model(self.model_class, self.model)

    @pydantic.field_validator("abc", "base_shapes")
    @classmethod
    def _content_instead_of_file(cls, value: str, info: pydantic.ValidationInfo) -> str:
        """So that a run does not depend on the file after it has begun."""
        return read_inline(f"--{str(info.field_name).replace('_', '-')}", value) if value else ""

    @pydantic.field_validator("roles")
    @classmethod
    def _names_and_roles(cls, parts: tuple[str, ...]) -> tuple[str, ...]:
        for part in parts:
            _role(part)
        return parts

    @pydantic.model_validator(mode="before")
    @classmethod
    def _without_initial_weights(cls, values: dict[str, Any]) -> dict[str, Any]:
        """At infinite width there are none: runs of all their seeds are one."""
        infinite = values.get("width") == INFINITE
        return {**values, "init_seed": None} if infinite and "init_seed" in values else values

    @pydantic.model_validator(mode="before")
    @classmethod
    def _fill_in_the_models_defaults(cls, values: dict[str, Any]) -> dict[str, Any]:
        name, where = (
            values.get(key) or cls.model_fields[key].default for key in ("model", "model_class")
        )
        known = isinstance(name, str) and isinstance(where, str) and name in MODELS.get(where, ())
        return with_defaults(values, MODELS[where][name].options) if known else values

    @pydantic.model_validator(mode="after")
    def _check_options(self) -> Self:
        reads = _USERS if self.is_user_model else _GENERAL | set(self.entry.options)
        if self.is_user_model and self.is_parametrized:
            reads |= {"width"}
        if not self.is_user_model and self.entry.pretrained:
            reads |= {"pretrained"}
        refuse_unread(self, ModelConfig.model_fields, reads, f"--model {self.model}")
        if self.nonlinearity is not None:
            NONLINEARITIES[self.nonlinearity]  # raises if unknown
        if self.pretrained and self.restore_path:
            raise ValueError("--pretrained and --restore-path are two origins of weights; give one")
        return self

    @pydantic.model_validator(mode="after")
    def _check_parametrization(self) -> Self:
        if self.param and self.abc:
            raise ValueError("--param and --abc are two parametrizations; give one")
        if self.base_width and self.base_shapes:
            raise ValueError("--base-width and --base-shapes say the same; give one")
        if not self.is_parametrized:
            refuse_unread(
                self, _PARAMETRIZATION - {"param", "abc"}, (), "training without --param or --abc"
            )
            return self
        if self.param:
            find_parametrization(self.param)  # raises if unknown
        else:
            parse_abc(self.abc, layers_of(self.abc))  # raises if there is a mistake
        if self.base_shapes:
            check_base_shapes(self.base_shapes)
        if self.pretrained:
            raise ValueError("--pretrained weights have their own scales; leave out --param")
        self._check_width()
        return self

    def _check_width(self) -> None:
        registered = not self.is_user_model
        if registered and "width" not in self.entry.options:
            fitting = [e.name for e in MODELS["default"] if "width" in e.options]
            raise ValueError(
                f"--param: --model {self.model} has no width; use {', '.join(fitting)}, or a "
                "function of your own with an argument width"
            )
        if self.width is None and not self.base_shapes:
            raise ValueError("--param needs the --width of your model, as in --width 256")


def _role(text: str) -> tuple[str, Role]:
    """A parameter's name or pattern and its role, from ``name=role``."""
    name, _, role = text.partition("=")
    for known in ROLES:
        if role == known and name:
            return name, known
    raise ValueError(f"{text}: write name=role; roles are {', '.join(ROLES)}")
