"""The languages of programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LanguageName = Literal["python", "bash", "cpp", "nodejs"]


@dataclass(slots=True, frozen=True)
class Language:
    """How to run a program."""

    file: str
    """The file that holds the code."""
    command: tuple[str, ...] = ()
    """Empty for the worker's own interpreter."""
    compiler: tuple[str, ...] = ()
    binary: str = ""
    limits_address_space: bool = True
    """False if programs reserve much more than they use. Then only the memory in use is limited."""


LANGUAGES: dict[LanguageName, Language] = {
    "python": Language("main.py"),
    "bash": Language("main.sh", ("bash", "main.sh")),
    "cpp": Language("main.cpp", ("./main",), ("g++", "-std=c++17", "-O2", "main.cpp", "-o", "main"), "main"),
    "nodejs": Language("main.js", ("node", "main.js"), limits_address_space=False),
}
"""The last two need a compiler or node on the machine."""
