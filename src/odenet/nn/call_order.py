"""How a velocity network is called: which of its parameters are the time, the state and the context."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import Parameter
from itertools import pairwise
from typing import Any, Literal, NoReturn, final

from torch import nn

from ..core.validate import describe

Role = Literal["t", "x", "context"]
_ROLES: tuple[Role, ...] = ("t", "x", "context")
_ITEM = re.compile(r"(?:(\*\*)|(\w+)\s*=\s*)?(\w+)")
_EXAMPLES = 'order="t, x", order="x, t" or order="x, timestep=t, class_labels=context"'

_TIME = r"t|ts|tx|tt|t_batch|times?|time_?steps?|tau|sigmas?|noise_levels?|noise_labels"
_STATE = (
    r"x|xs|xt|x_t|x_in|x_noisy|noisy|noisy_x|noised|noised_input|samples?|inputs?|states?|latents?|hidden_states"
    r"|images?|img|data|positions?|pos"
)
_OTHER_STATE = r"y|yt|y_t|z|zt|z_t|h|u|q"  # the state, unless one of the names above comes before it
_CONTEXT = (
    r"y|c|conds?|conditions?|conditioning|context|ctx|labels?|class_labels?|classes|class_cond|encoder_hidden_states"
    r"|text_embeds|prompt_embeds|extra"
)


@final
@dataclass(frozen=True)
class CallOrder:
    """The arguments of a call, in order.

    arguments: keyword and role of each; the keyword of a positional argument is "", and "**" unpacks a context that is
    a dict. needs_context: the network cannot be called without a context. contexts: the names of the parameters that
    may each take it, where there are several.
    """

    arguments: tuple[tuple[str, Role], ...]
    needs_context: bool = False
    contexts: tuple[str, ...] = ()

    def has(self, role: Role) -> bool:
        return any(r == role for _, r in self.arguments)

    def bind(self, t: Any, x: Any, context: tuple[Any, ...]) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments; context: empty, or the context alone."""
        args: list[Any] = []
        keywords: dict[str, Any] = {}
        for keyword, role in self.arguments:
            if role == "context" and not context:
                continue
            value = t if role == "t" else x if role == "x" else context[0]
            if keyword == "**":
                keywords |= value
            elif keyword:
                keywords[keyword] = value
            else:
                args.append(value)
        return args, keywords

    def check_context(self, context: tuple[Any, ...]) -> None:
        """Raise TypeError unless the call has a place for the context, and the context that it needs."""
        if len(context) > 1:
            raise TypeError(
                f"the field takes one context, f(t, y, context); got {len(context)}: join them in a dict, with "
                'order="x, t, **context"'
            )
        if context and self.contexts:
            raise TypeError(
                f"f(t, y, context) got a context, and {', '.join(self.contexts)} of the network may each take it: name "
                f'one, as in context="{self.contexts[-1]}"'
            )
        if context and not self.has("context"):
            raise TypeError(
                "f(t, y, context) got a context, but adapt found no parameter of the network for it: name it, "
                f'context="class_labels", or give a dict with order="{self}, **context"'
            )
        if self.needs_context and not context:
            raise TypeError(
                f'the network is called as "{self}" and needs a context: f(t, y, context), in a solve args=(context,)'
            )
        if context and ("**", "context") in self.arguments and not isinstance(context[0], dict):
            raise TypeError(f'order="{self}" takes a context that is a dict; got {describe(context[0])}')

    def __str__(self) -> str:
        return ", ".join(
            f"**{role}" if keyword == "**" else f"{keyword}={role}" if keyword else role
            for keyword, role in self.arguments
        )


def call_order(network: Callable[..., Any], order: Any, context: Any) -> CallOrder:
    """By the text `order`, or where it is None by the names of the network's parameters.

    context: the keyword by which the context is passed, or None. Raises TypeError or ValueError.
    """
    if context is not None and not (isinstance(context, str) and context.isidentifier()):
        raise TypeError(f"context must be the name of a parameter of the network; got {describe(context)}")
    if order is None:
        return _by_names(network, context)
    arguments = _parsed(order)
    if context is not None:
        if any(role == "context" for _, role in arguments):
            raise ValueError(f"order={order!r} has a place for the context already: leave out context={context!r}")
        arguments.append((context, "context"))
    return CallOrder(tuple(arguments), _context_is_inside(arguments))


def _context_is_inside(arguments: Sequence[tuple[str, Role]]) -> bool:
    """True when a positional argument follows a positional context."""
    positional = [role for keyword, role in arguments if not keyword]
    return "context" in positional[:-1]


def _parsed(order: Any) -> list[tuple[str, Role]]:
    if not isinstance(order, str):
        raise TypeError(f"order must be the arguments of the network, such as {_EXAMPLES}; got {describe(order)}")
    arguments: list[tuple[str, Role]] = []
    for item in order.split(","):
        match = _ITEM.fullmatch(item.strip())
        role = match[3] if match else ""
        if match is None or role not in _ROLES or (match[1] and role != "context"):
            raise ValueError(
                f"order={order!r}: {item.strip()!r} is none of t, x, context, name=t, name=x, name=context, "
                f"**context; write, for example, {_EXAMPLES}"
            )
        arguments.append((match[1] or match[2] or "", role))
    roles = [role for _, role in arguments]
    if roles.count("x") != 1 or len(set(roles)) < len(roles):
        raise ValueError(f"order={order!r} must have x once, and t and context at most once")
    if any(not after[0] for before, after in pairwise(arguments) if before[0]):
        raise ValueError(f"order={order!r} has a positional argument after a keyword")
    return arguments


def time_is_second(network: Callable[..., Any]) -> bool:
    """True where the names of the network's parameters say network(x, t)."""
    try:
        first, second, *_ = _parameters(network)
    except ValueError:  # not readable, or of one parameter
        return False
    return bool(_named([second], _TIME)) and not _named([first], _TIME)


def takes(network: Callable[..., Any], count: int) -> bool:
    """True where the network can be called with so many positional arguments, or does not tell."""
    try:
        signature = inspect.signature(_readable(network))
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _by_names(network: Callable[..., Any], context: str | None) -> CallOrder:
    parameters = _parameters(network)
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name != context]
    times = _named(named, _TIME)
    if len(times) > 1:
        _ambiguous(network, parameters, f"{_names(times)} may each be the time")
    rest = [p for p in named if p not in times]
    state = _state(network, parameters, rest, bool(times))
    rest.remove(state)
    found: dict[str, Role] = {state.name: "x", **{p.name: "t" for p in times}}
    contexts: list[Parameter] = []
    several: list[Parameter] = []
    if context is None:
        known = _named(rest, _CONTEXT)
        several = known if len(known) > 1 and not _required(known[0]) else []
        contexts = (known or [p for p in rest if _required(p)])[:1]
        found |= {p.name: "context" for p in contexts}
    missing = [p for p in rest if _required(p) and p not in contexts]
    if missing:
        _ambiguous(network, parameters, f"it also needs {_names(missing)}", ', or give a dict: order="x, t, **context"')
    if not times and len(parameters) > len(found) + (context is not None):
        _ambiguous(network, parameters, "none is known as the time")
    arguments: list[tuple[str, Role]] = []
    positional = True
    for p in named:
        if p.name in found:
            arguments.append(("" if positional and p.kind is not p.KEYWORD_ONLY else p.name, found[p.name]))
        # what follows a parameter that may be left out is passed by its name
        positional = positional and p.name in found and found[p.name] != "context"
    if context is not None:
        if not any(p.name == context or p.kind is p.VAR_KEYWORD for p in parameters):
            raise ValueError(f"context={context!r} is no parameter of the network, which has {_names(parameters)}")
        arguments.append((context, "context"))
    names = tuple(p.name for p in several)
    return CallOrder(tuple(arguments), any(_required(p) for p in contexts), names)


def _state(network: Any, parameters: Sequence[Parameter], rest: Sequence[Parameter], has_time: bool) -> Parameter:
    states = _named(rest, f"{_STATE}|{_OTHER_STATE}")
    required = [p for p in rest if _required(p)]
    if not states and (len(required) == 1 if has_time else len(parameters) == 1 and rest):
        return required[0] if has_time else rest[0]
    if not states:
        _ambiguous(network, parameters, "none is known as the state")
    if len(states) > 1 and not _named(states[:1], _STATE):
        _ambiguous(network, parameters, f"{_names(states)} may each be the state")
    return states[0]


def _parameters(network: Callable[..., Any]) -> list[Parameter]:
    try:
        return list(inspect.signature(_readable(network)).parameters.values())
    except (TypeError, ValueError):
        raise ValueError(f"the network's parameters cannot be read: name their order, such as {_EXAMPLES}") from None


def _readable(network: Any) -> Callable[..., Any]:
    """The function whose parameters have names: of a module, also inside torch.compile, DataParallel or a partial."""
    if isinstance(network, functools.partial):
        bound: functools.partial[Any] = network
        return functools.partial(_readable(bound.func), *bound.args, **bound.keywords)
    if not isinstance(network, nn.Module):
        return network
    inner: Any = getattr(network, "_orig_mod", None)
    if isinstance(network, nn.DataParallel):
        inner = network.module
    return network.forward if inner is None else _readable(inner)


def _named(parameters: Sequence[Parameter], names: str) -> list[Parameter]:
    """The parameters that match a pattern; those without a default, where there is one."""
    found = [p for p in parameters if re.fullmatch(names, p.name.lower().strip("_"))]
    return [p for p in found if _required(p)] or found


def _required(p: Parameter) -> bool:
    return p.default is p.empty


def _names(parameters: Sequence[Parameter]) -> str:
    return ", ".join(str(p).partition(":")[0].partition("=")[0] for p in parameters) or "none"


def _ambiguous(network: Any, parameters: Sequence[Parameter], why: str, more: str = "") -> NoReturn:
    kind = getattr(network, "__name__", type(network).__name__)
    raise ValueError(
        f"the parameters of the network {kind}({_names(parameters)}) do not tell how to call it: {why}. "
        f"Name their order, such as {_EXAMPLES}{more}"
    )
