"""Models that the user brings: ``path/to/file.py:function`` or ``package.module:function``."""

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from Utils.errors import UserError


def build_user_model(
    reference: str,
    input_shape: tuple[int, ...],
    num_classes: int,
    dtype: torch.dtype,
    options: Mapping[str, int] | None = None,
) -> nn.Module:
    """Call the user's function and check what it returns.

    Args:
        reference: what follows ``--model``.
        input_shape: of one example; the function's first argument.
        num_classes: number of outputs; the function's second argument.
        dtype: what the model is converted to.
        options: more arguments, by name.

    Raises:
        UserError: the function cannot be found or fails, or what it returns is not a module
            with parameters that maps [N, *input_shape] to [N, num_classes].
    """
    model = call_user_function(reference, input_shape, num_classes, options or {})
    model = model.to("cpu", dtype)
    _check_output(reference, model, torch.zeros(2, *input_shape, dtype=dtype), num_classes)
    return model


def call_user_function(
    reference: str, input_shape: tuple[int, ...], num_classes: int, options: Mapping[str, int]
) -> nn.Module:
    """What the user's function makes, wherever it makes it.

    Args:
        reference: what follows ``--model``.
        input_shape: the function's first argument.
        num_classes: its second argument.
        options: its other arguments, by name.

    Raises:
        UserError: the function cannot be found or fails, or returns no module with parameters.
    """
    function = load_function(reference)
    try:
        model = function(input_shape, num_classes, **options)
    except Exception as error:
        _blame(reference, "the function failed", error)
    if not isinstance(model, nn.Module):
        raise UserError(
            f"--model {reference}: the function returned {type(model).__name__}; "
            "return a torch.nn.Module"
        )
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError(f"--model {reference}: the model has no parameters to train")
    return model


def load_function(reference: str) -> Callable[..., Any]:
    """The function that a reference names.

    Args:
        reference: ``path/to/file.py:function`` or ``package.module:function``.

    Raises:
        UserError: no such file, module or function, or importing it fails.
    """
    source, _, name = reference.rpartition(":")
    if not source or not name:
        raise UserError(f"--model {reference}: write it as file.py:function or module:function")
    is_file = source.endswith(".py")
    if is_file and not Path(source).expanduser().is_file():
        raise UserError(f"--model {reference}: there is no file {source}")
    try:
        module = _import_file(Path(source).expanduser()) if is_file else _import_module(source)
    except Exception as error:
        _blame(reference, f"importing {source} failed", error)
    function = getattr(module, name, None)
    if not callable(function):
        own = [
            n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__
        ]
        raise UserError(
            f"--model {reference}: {source} has no function '{name}'; "
            f"it defines: {', '.join(own) or 'none'}"
        )
    found: Callable[..., Any] = function
    return found


def _import_file(path: Path) -> ModuleType:
    """Import a file; modules beside it can be imported by it, but shadow none of ours."""
    _search_last(str(path.resolve().parent))
    name = f"user_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    spec.loader.exec_module(module)
    return module


def _import_module(name: str) -> ModuleType:
    _search_last(os.getcwd())
    return importlib.import_module(name)


def _search_last(folder: str) -> None:
    if folder not in sys.path:
        sys.path.append(folder)


@torch.no_grad()
def _check_output(reference: str, model: nn.Module, inputs: Tensor, num_classes: int) -> None:
    """Try a batch, in evaluation mode so that no running statistic changes."""
    training = model.training
    try:
        output = model.eval()(inputs)
    except Exception as error:
        _blame(reference, f"the model failed on inputs of shape {list(inputs.shape)}", error)
    model.train(training)
    expected = [len(inputs), num_classes]
    seen = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if seen != expected:
        raise UserError(
            f"--model {reference}: inputs of shape {list(inputs.shape)} gave outputs of shape "
            f"{seen}; return {expected}"
        )


def _blame(reference: str, what: str, error: Exception) -> NoReturn:
    """Report the user's exception in one line, with the line of the user's code it came from."""
    libraries = (sys.prefix, sys.base_prefix, __file__, "<")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(libraries)]
    where = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    text = " ".join(str(error).split())
    raise UserError(
        f"--model {reference}: {what}: {type(error).__name__}: {text}{where}"
    ) from error
