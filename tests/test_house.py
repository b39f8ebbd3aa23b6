"""The house rules: which room imports which, what importing a room costs, what is documented."""

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from Data import DATASETS
from Metrics import METRICS, CacheConfig
from Metrics.figures import PlotConfig
from Models import MODELS, NONLINEARITIES
from Models.infinite.duals.registry import DUALS
from Models.parametrization import PARAMETRIZATIONS
from Training import BUFFERS, LOSSES, OPTIMIZERS, TrainConfig
from Training.config import ExtractConfig
from Utils.cli import parse
from Utils.config import Config
from Utils.registry import Entry, Registry

ROOT = Path(__file__).parents[1]

#: what each room may import besides itself: stages → Metrics → Training → Models, Data → Utils
RIGHT_OF = {
    "Utils": frozenset[str](),
    "Data": frozenset({"Utils"}),
    "Models": frozenset({"Utils"}),
    "Training": frozenset({"Models", "Data", "Utils"}),
    "Metrics": frozenset({"Training", "Models", "Data", "Utils"}),
}
ROOMS = frozenset(RIGHT_OF)
STAGES = frozenset({"train", "extract", "cache", "plot"})
LATE = {"torch", "matplotlib", "google.cloud.storage"}
"""What is imported when it is needed, because it takes seconds."""

HOUSE = ROOMS | STAGES | {"scripts", "benchmarks", "notebooks", "tests"}

REGISTRIES: list[tuple[str, Registry[Any]]] = [
    *(("Models", registry) for registry in MODELS.values()),
    ("Models", NONLINEARITIES),
    ("Models", PARAMETRIZATIONS),
    ("Models", DUALS),
    ("Data", DATASETS),
    ("Training", OPTIMIZERS),
    ("Training", LOSSES),
    ("Training", BUFFERS),
    ("Metrics", METRICS),
]
ENTRIES = [pytest.param(room, e, id=e.name) for room, registry in REGISTRIES for e in registry]

SCHEMAS: dict[str, type[Config]] = {
    "train": TrainConfig,
    "extract": ExtractConfig,
    "cache": CacheConfig,
    "plot": PlotConfig,
}


def imported(source: str) -> Iterator[str]:
    """What a file imports, wherever in it: the first part of each absolute name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            argument = node.args[0]
            if name in {"import_module", "__import__"} and isinstance(argument, ast.Constant):
                yield str(argument.value).partition(".")[0]


def forbidden(path: str, source: str) -> set[str]:
    """The parts of the house that a file imports although its place does not allow it."""
    place = path.partition("/")[0].removesuffix(".py")
    allowed = RIGHT_OF.get(place, ROOMS)
    return (set(imported(source)) & HOUSE) - allowed - {place}


def sources() -> dict[str, str]:
    """Every Python file outside the tests, and the code of every notebook, by its path."""
    files = [*ROOT.glob("*.py")]
    for folder in (*sorted(ROOMS), "scripts", "benchmarks", "notebooks"):
        files += (ROOT / folder).rglob("*.py")
    texts = {str(file.relative_to(ROOT)): file.read_text() for file in files}
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(notebook.read_text())["cells"]
        lines = [x for c in cells if c["cell_type"] == "code" for x in [*c["source"], "\n"]]
        code = "".join(x for x in lines if not x.startswith(("%", "!")))
        texts[str(notebook.relative_to(ROOT))] = code
    return texts


def test_every_file_imports_only_what_its_room_may() -> None:
    texts = sources()
    assert {"train.py", "Utils/cli.py", "Metrics/figures/__init__.py"} <= texts.keys()
    assert {path: bad for path, text in texts.items() if (bad := forbidden(path, text))} == {}


@pytest.mark.parametrize(
    ("path", "source", "bad"),
    [
        ("Utils/a.py", "import Models", {"Models"}),
        ("Utils/a.py", "def f():\n    from Data.digits import load", {"Data"}),
        ("Data/a.py", "from Models import MODELS", {"Models"}),
        ("Models/a.py", "import Data.registry as r", {"Data"}),
        ("Training/a.py", "if TYPE_CHECKING:\n    from Metrics import METRICS", {"Metrics"}),
        ("Metrics/figures/a.py", "from train import main", {"train"}),
        ("Models/symmetry/a.py", "import os, scripts.demo", {"scripts"}),
        ("benchmarks/a.py", "import extract", {"extract"}),
        ("scripts/a.py", "import benchmarks", {"benchmarks"}),
        ("Data/a.py", "import_module('Training.loop')", {"Training"}),
        ("train.py", "import cache", {"cache"}),
        ("notebooks/a.ipynb", "import plot\nfrom tests import runs", {"plot", "tests"}),
        ("Metrics/a.py", "import numpy, Metrics.b\nfrom Training.config import T", set()),
        ("Models/a.py", "from . import b\nfrom Utils.cli import parse", set()),
        ("cache.py", "import Metrics, Utils, Training", set()),
    ],
)
def test_the_rule_can_fail(path: str, source: str, bad: set[str]) -> None:
    assert forbidden(path, source) == bad


@pytest.mark.parametrize(("room", "entry"), ENTRIES)
def test_entries_are_built_by_their_own_room_or_a_library(room: str, entry: Entry) -> None:
    module = entry.builder.partition(".")[0]
    assert module == room or module not in HOUSE
    assert callable(entry.load())


@pytest.mark.parametrize("room", ["Utils.cli", "Data", "Models", "Training", "Metrics"])
def test_importing_a_room_does_not_bring_torch(room: str) -> None:
    code = f"import sys, {room}; sys.exit({LATE} & sys.modules.keys() != set())"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_working_on_a_run_does_not_bring_torchvision() -> None:
    """It takes a second to import, of commands that may take three."""
    code = "import sys, Training.run, Metrics.width.caching; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_help_does_not_bring_torch(stage: str) -> None:
    code = (
        f"import sys, {stage}\nsys.argv = ['{stage}.py', '--help']\n"
        f"try: {stage}.main()\nexcept SystemExit as e: assert not e.code\n"
        f"sys.exit({LATE} & sys.modules.keys() != set())"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--experiment" in done.stdout


@pytest.mark.parametrize(("room", "entry"), ENTRIES)
def test_every_entry_describes_itself_in_one_line(room: str, entry: Entry) -> None:
    assert entry.description.strip()
    assert "\n" not in entry.description


@pytest.mark.parametrize("registry", [registry for _, registry in REGISTRIES])
def test_listings_name_every_entry(registry: Registry[Any]) -> None:
    lines = [line.split(maxsplit=1) for line in registry.table().splitlines()]
    assert lines == [[entry.name, entry.description] for entry in registry]


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ +(.+?) *$", page.read_text(), re.MULTILINE)


def test_the_commands_that_train_the_models_are_right() -> None:
    page = (ROOT / "docs" / "models.md").read_text()
    commands = re.findall(r"^ +python train\.py ([^…\n]+)$", page, re.MULTILINE)
    configs = [parse(TrainConfig, shlex.split(flags)) for flags in commands]
    assert {config.model_class for config in configs} == set(MODELS)


@pytest.mark.parametrize("model_class", MODELS)
def test_every_model_has_its_section(model_class: str) -> None:
    """A heading of the third level names the models of one family, below that of their class."""
    page = (ROOT / "docs" / "models.md").read_text()
    chapters = re.split(r"^## (.+)$", page, flags=re.MULTILINE)
    chapter = chapters[chapters.index(f"--model-class {model_class}") + 1]
    named = re.findall(r"^### (.+)$", chapter, re.MULTILINE)
    names = sorted(name for heading in named for name in heading.split(", "))
    assert names == sorted(MODELS[model_class].names)


def test_every_dataset_has_its_section_or_row() -> None:
    page = ROOT / "docs" / "data.md"
    rows = re.findall(r"^\| *`([^`]+)` *\|", page.read_text(), re.MULTILINE)
    assert set(DATASETS.names) <= {*headings(page), *rows}


def test_every_dual_activation_has_its_row() -> None:
    page = (ROOT / "docs" / "infinite_width.md").read_text()
    rows = re.findall(r"^\| (`[^|]+`) \|", page, re.MULTILINE)
    assert set(DUALS.names) <= {name.strip("` ") for row in rows for name in row.split(",")}


def test_every_parametrization_has_its_row() -> None:
    page = (ROOT / "docs" / "parametrizations.md").read_text()
    rows = re.findall(r"^\| *`([^`:]+)(?::s)?`", page, re.MULTILINE)
    assert set(PARAMETRIZATIONS.names) <= set(rows)
    commands = re.findall(r"^ +python train\.py ([^…\n]+)$", page, re.MULTILINE)
    assert len([parse(TrainConfig, shlex.split(flags)) for flags in commands]) >= 4


@pytest.mark.parametrize("metric", METRICS.names)
def test_every_metric_has_its_page(metric: str) -> None:
    page = ROOT / "docs" / "metrics" / f"{metric}.md"
    sections = ["What it tells", "Formula", "When it applies", "Command", "Figure", "Source"]
    assert headings(page) == [metric, *sections]
    parts = re.split(r"^## .*$", page.read_text(), flags=re.MULTILINE)[1:]
    assert all(part.strip() for part in parts)
    for figure in re.findall(r"\]\(([^)]+)\)", parts[4]):
        assert (page.parent / figure).is_file(), figure
    commands = re.findall(r"^ +python (\w+)\.py (.+)$", parts[3], re.MULTILINE)
    assert [stage for stage, _ in commands][-2:] == ["cache", "plot"]
    for stage, flags in commands:
        config = parse(SCHEMAS[stage], shlex.split(flags))
        if stage in {"cache", "plot"}:
            assert getattr(config, "metrics") == (metric,)  # noqa: B009


@pytest.mark.parametrize("figure", sorted(ROOT.glob("docs/**/*.png")), ids=lambda path: path.stem)
def test_figures_tell_no_paths_of_the_machine_that_drew_them(figure: Path) -> None:
    with Image.open(figure) as image:
        drawn_by = str(image.info.get("Description", ""))
    assert not [word for word in drawn_by.split() if word.startswith(("/", "~"))]
