"""YAML files of ``name: value`` lines, and what is wrong with those that are none."""

from pathlib import Path
from typing import Any

import yaml

from Utils.errors import UserError


def read_mapping(path: Path, where: str, lines: str) -> dict[str, Any]:
    """The content of a YAML file that is a mapping; the keys as text.

    Args:
        path: the file.
        where: begins the messages: the flag and its value.
        lines: how a line should look, for messages.

    Raises:
        UserError: it cannot be read, or is none.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: cannot be read ({error})") from None
    return parse_mapping(text, where, lines)


def parse_mapping(text: str, where: str, lines: str) -> dict[str, Any]:
    """Like :func:`read_mapping`, of the text itself."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not YAML ({' '.join(str(error).split())})") from None
    if content is None:
        raise UserError(f"{where}: is empty; write '{lines}' lines")
    if not isinstance(content, dict):
        raise UserError(f"{where}: expected '{lines}' lines, found {type(content).__name__}")
    return {str(key): value for key, value in content.items()}
