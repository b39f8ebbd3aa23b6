"""The parametrizations that exist, by the names that the user types."""

from dataclasses import dataclass
from fractions import Fraction

from Models.parametrization.exponents import ABC, Family, fraction
from Utils.errors import UserError
from Utils.registry import Entry, Registry


@dataclass(frozen=True)
class ParametrizationEntry(Entry):
    """A parametrization; the builder is ``builder(family, hidden_layers, **options)``.

    Attributes:
        option: the name of the number from 0 to 1 that follows ``name:``; empty if there is none.
        families: of optimizers that it has learning rates for.
        chain: whether they depend on a layer's place, so that the layers must form a chain.
    """

    option: str = ""
    families: tuple[Family, ...] = ("sgd", "adam")
    chain: bool = False


_YANG_HU = "Yang and Hu (2021), Tensor Programs IV, arXiv 2011.14522"
_HAJJAR = "Hajjar, Chizat and Giraud (2021), arXiv 2110.15596"

PARAMETRIZATIONS: Registry[ParametrizationEntry] = Registry(
    "parametrization",
    [
        ParametrizationEntry(
            "sp",
            "Models.parametrization.families:standard",
            "standard: weights n^{-1/2}, the same lr for all widths",
        ),
        ParametrizationEntry(
            "sp-lr1n",
            "Models.parametrization.families:standard_lr1n",
            "standard with lr/n: a kernel limit under sgd",
            _YANG_HU,
        ),
        ParametrizationEntry(
            "ntk",
            "Models.parametrization.families:ntk",
            "neural tangent kernel: the kernel limit, also under adam",
            "Jacot et al. (2018), arXiv 1806.07572",
        ),
        ParametrizationEntry(
            "mup",
            "Models.parametrization.families:mup",
            "maximal update, in its abc form: every layer learns features",
            _YANG_HU,
        ),
        ParametrizationEntry(
            "mup-table8",
            "Models.parametrization.families:mup_table8",
            "the same as the library mup writes it: 1/n before the readout",
            "Yang et al. (2022), Tensor Programs V, arXiv 2203.03466, Table 8",
        ),
        ParametrizationEntry(
            "mean-field",
            "Models.parametrization.families:integrable",
            "integrable (ip): 1/n in every layer; vanishes, learns up to 2 hidden layers",
            _HAJJAR,
        ),
        ParametrizationEntry(
            "ipllr",
            "Models.parametrization.families:integrable_large_first_step",
            "ip with a large first step: feature learning; sgd, momentum",
            _HAJJAR,
            families=("sgd",),
            chain=True,
        ),
        ParametrizationEntry(
            "ipllr-bias",
            "Models.parametrization.families:integrable_large_first_step_bias",
            "ipllr with biases of size 1",
            _HAJJAR,
            families=("sgd",),
            chain=True,
        ),
        ParametrizationEntry(
            "ip-non-centered",
            "Models.parametrization.families:integrable_non_centered",
            "ip with weights of mean 1 after the first layer",
            _HAJJAR,
        ),
        ParametrizationEntry(
            "hybrid",
            "Models.parametrization.families:hybrid",
            "hybrid:s, from ntk (s = 0) to mup (s = 1)",
            option="s",
        ),
    ],
    aliases={"ip": "mean-field"},
)


def find_parametrization(text: str) -> tuple[ParametrizationEntry, dict[str, Fraction]]:
    """The entry that the user asks for, and its options.

    Args:
        text: what follows ``--param``: ``mup``, ``hybrid:0.5``.

    Raises:
        UserError: there is none, or its number is missing, superfluous or out of bounds.
    """
    name, colon, number = text.partition(":")
    entry = PARAMETRIZATIONS[name]
    if bool(colon) != bool(entry.option):
        example = f"{entry.name}:0.5" if entry.option else entry.name
        raise UserError(f"--param {text}: write it as {example}")
    if not entry.option:
        return entry, {}
    try:
        value = fraction(number)
    except ValueError as error:
        raise UserError(f"--param {text}: {error}") from None
    if not 0 <= value <= 1:
        raise UserError(f"--param {text}: {entry.option} goes from 0 to 1; choose one in between")
    return entry, {entry.option: value}


def build_parametrization(text: str, family: Family, hidden_layers: int) -> ABC:
    """The exponents of a named parametrization.

    Args:
        text: what follows ``--param``.
        family: of the optimizer.
        hidden_layers: L ≥ 1; 2 where only roles matter.

    Raises:
        UserError: there is no such parametrization, or not for this family.
    """
    entry, options = find_parametrization(text)
    if family not in entry.families:
        raise UserError(
            f"--param {text} has learning rates for --optimizer sgd and momentum only: its first "
            "step undoes vanishing gradients, whose size adam divides out; use --param ip"
        )
    abc: ABC = entry.load()(family, hidden_layers, **options)
    return abc
