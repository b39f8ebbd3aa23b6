"""The three ways of computing a tangent kernel, and which one is taken."""

from typing import Any, Literal, get_args

from Metrics.tangent.network import Network
from Metrics.tangent.plan import Plan
from Metrics.tangent.schedule import passed
from Utils.errors import UserError

Form = Literal["traced", "full"]
Route = Literal["auto", "structured", "jacobian", "products"]


def check_choice(name: str, value: str, known: Any) -> None:
    """Refuse what an argument cannot be, which types do not tell at run time.

    Args:
        name: of the argument.
        value: as given.
        known: the ``Literal`` that it should be of.

    Raises:
        UserError: it is not.
    """
    if value not in get_args(known):
        choices = " or ".join(repr(choice) for choice in get_args(known))
        raise UserError(f"{name}={value!r} is unknown; use {choices}")


def choose(
    network: Network, plan: Plan, route: Route, memory: int
) -> Literal["structured", "jacobian", "products"]:
    """The way that is asked for, or the cheapest.

    The structured way differentiates the network as rows of the Jacobian do, but forms them only
    where that is cheaper than not to: it never does more. If it knows no call, or if examples
    see each other, rows remain; if not two of them fit into the memory, products.

    Args:
        network: whose kernel it is.
        plan: of the network.
        route: as asked for.
        memory: bytes for temporaries.

    Raises:
        UserError: an unknown way, or the structured one where examples see each other.
    """
    check_choice("route", route, Route)
    if route == "structured" and network.couples_examples:
        raise UserError(
            "route='structured' needs examples that do not see each other, but the logits of one "
            "depend on its batch (batch normalisation in training mode?); call .eval(), or use "
            "route='jacobian'"
        )
    if route != "auto":
        return route
    scalar = next(iter(network.parameters.values())).element_size()
    known = any(term.kind != "jacobian" for term in plan.terms)
    numbers = max(plan.stored.values()) if known else sum(plan.stored.values())
    if memory < 4 * scalar * max(numbers, passed(plan)):
        return "products"
    return "structured" if known else "jacobian"
