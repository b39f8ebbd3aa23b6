"""plot.py --report, and the page that it writes, also as a browser shows it."""

import base64
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest
from numpy.typing import NDArray

from Metrics import METRICS
from Metrics.figures import report
from Metrics.figures._config import PlotConfig
from Metrics.figures.report import write_report
from Metrics.figures.report._flags import differing, flags
from Metrics.summary import deviation
from Models.symmetry import KINDS, Laws
from tests.metrics.test_figures import write_law
from tests.runs import ROOT, Runs, cache_run, extract_run, flags_of, mistake, run_stage, train_run
from Training.config import TrainConfig
from Utils.cli import parse
from Utils.errors import UserError
from Utils.rundir import RunFolder

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
HOSTILE = "<img src=x onerror='alert(1)'>&\""
"""A name that would leave the page if it were not escaped."""

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """What a page holds: rows of its tables by caption, pictures, links, and unbalanced tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.images: list[dict[str, str]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.heads: list[str] = []
        self.stack: list[str] = []
        self._caption = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.attributes += [(tag, name, value) for name, value in given.items()]
        self.ids += [given["id"]] if "id" in given else []
        if tag == "img":
            self.images.append(given)
        if tag not in VOID:
            self.stack.append(tag)
        if tag == "caption":
            self._caption = ""
        if tag == "tr":
            self.tables.setdefault(self._caption, []).append([])
        if tag in {"th", "td"}:
            assert (tag == "td") == ("scope" not in given)
            self.tables[self._caption][-1].append("")
        if re.fullmatch("h[1-6]", tag):
            self.heads.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.stack:
            return
        if self.stack[-1] == "caption":
            self._caption += data
        elif {"th", "td"} & set(self.stack):
            self.tables[self._caption][-1][-1] += data
        elif re.fullmatch("h[1-6]", self.stack[-1]):
            self.heads[-1] += data

    def table(self, start: str) -> list[list[str]]:
        """The rows of the one table whose caption begins so, its head first."""
        (found,) = (rows for caption, rows in self.tables.items() if caption.startswith(start))
        return found


@pytest.fixture(scope="module")
def cached(trained: Runs, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with caches of every default metric; for reading only."""
    path = tmp_path_factory.mktemp("report") / "e" / "a"
    shutil.copytree(trained("--model conv-bn --width 4").path, path)
    run = RunFolder(path)
    cache_run(run)
    return run


@pytest.fixture
def own_run(cached: RunFolder, tmp_path: Path) -> RunFolder:
    shutil.copytree(cached.path, tmp_path / "e" / "a")
    return RunFolder(tmp_path / "e" / "a")


@pytest.fixture(scope="module")
def page(cached: RunFolder) -> Path:
    """The report of the cached run."""
    (line,) = write_report(parse(PlotConfig, ["--report", *flags_of(cached)]))
    assert line == str(cached.path / "img" / "report.html")
    return Path(line)


class TestRun:
    def test_every_cache_has_its_figure_with_its_words(self, page: Path, cached: RunFolder) -> None:
        found = Page(page.read_text())
        assert not found.stack
        names = [name for name in METRICS.names if cached.cache(name).exists()]
        assert {"scale", "rescale", "translation", "performance", "network"} <= {*names}
        titles = [METRICS[name].title for name in names]
        assert found.heads[-len(names) :] == titles
        drawn = [name for name in names if name != "balance"]  # of which this network has none
        for name, image in zip(drawn, found.images, strict=True):
            assert image["alt"].startswith(METRICS[name].title)
            assert "step 0 to 12" in image["alt"]
            words = METRICS[name].description
            assert f"{words[0].upper()}{words[1:]}." in page.read_text()

    def test_figures_are_whole_pictures_of_the_size_that_is_told(self, page: Path) -> None:
        for image in Page(page.read_text()).images:
            kind, _, content = image["src"].partition(";base64,")
            assert kind == "data:image/svg+xml"
            root = ElementTree.fromstring(base64.b64decode(content))
            width, height = (float(root.attrib[side][:-2]) for side in ("width", "height"))
            assert int(image["width"]) / int(image["height"]) == pytest.approx(
                width / height, rel=0.01
            )

    def test_numbers_are_those_of_the_caches(self, page: Path, cached: RunFolder) -> None:
        found = Page(page.read_text())
        deviations = [deviation(cached.cache(name)) for name in ("scale", "rescale", "translation")]
        rows = [[*d.row()[1:]] for d in deviations if d is not None]
        assert found.table("Largest")[1:] == rows
        laws = Laws.load(cached.symmetries)
        wanted = [[f.kind, f.layer, str(len(f)), ", ".join(f.parameters)] for f in laws.families]
        assert found.table(f"{len(laws)} laws")[1:] == wanted
        gates = [gate for gate in found.table("Gates")[1:] if gate[0] in KINDS]
        assert [[kind, layer] for kind, layer, *_ in gates] == [[f[0], f[1]] for f in wanted]
        assert {verdict for *_, verdict, _ in gates} == {"open"}

    def test_changed_flags_come_first(self, page: Path) -> None:
        found = Page(page.read_text())
        changed = {row[0]: row[1:] for row in found.table("Different")[1:]}
        assert changed["--model"] == ["conv-bn", "conv"]
        assert changed["--width"] == ["4", "32"]
        usual = {row[0]: row[1:] for row in found.table("At their")[1:]}
        assert usual["--lr"] == ["0.05", "0.05"]
        assert not {"--expid", "--save-dir"} & (changed.keys() | usual.keys())

    def test_contents_link_to_sections(self, page: Path) -> None:
        found = Page(page.read_text())
        links = [value for tag, name, value in found.attributes if (tag, name) == ("a", "href")]
        assert len(set(found.ids)) == len(found.ids)
        assert {link.removeprefix("#") for link in links} == set(found.ids)

    def test_nothing_is_fetched(self, page: Path) -> None:
        found = Page(page.read_text())
        outside = {"src", "href", "srcset", "action", "data", "poster", "background"}
        targets = [value for _, name, value in found.attributes if name in outside]
        assert targets
        assert all(target.startswith(("#", "data:")) for target in targets)
        assert "url(" not in page.read_text()
        assert "@import" not in page.read_text()
        assert "<script" not in page.read_text()

    def test_closed_gates_and_lawless_parameters_have_reasons(self, own_run: RunFolder) -> None:
        write_law(own_run.cache("scale"), {"conv1": 4, HOSTILE: 2}, closed={"conv1": [0, 1]})
        own_run.cache("rescale").unlink()
        done = run_stage("plot", own_run, "--report")
        assert (done[0], done[2]) == (0, "")
        found = Page((own_run.path / "img" / "report.html").read_text())
        closed, hostile = (row for row in found.table("Gates")[1:] if row[0] == "scale")
        assert closed == ["scale", "conv1", "2 of 4 open", "leak 3e-04 in 12 of 64 laws"]
        assert hostile[1] == HOSTILE
        assert all(image["src"].startswith("data:image") for image in found.images)
        assert "Rescale symmetry" not in found.heads

    def test_a_large_figure_is_made_of_pixels(
        self, own_run: RunFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(report, "_LARGEST_FIGURE", 1000)
        argv = ["--report", "--metrics", "performance", *flags_of(own_run)]
        (line,) = write_report(parse(PlotConfig, argv))
        (image,) = Page(Path(line).read_text()).images
        kind, _, content = image["src"].partition(";base64,")
        assert kind == "data:image/png"
        assert base64.b64decode(content).startswith(b"\x89PNG")

    def test_page_is_written_again_only_if_something_is_new(self, own_run: RunFolder) -> None:
        argv = ["--report", "--metrics", "performance", *flags_of(own_run)]
        path = own_run.path / "img" / "report.html"

        def written(*more: str) -> list[str]:
            return list(write_report(parse(PlotConfig, [*argv, *more])))

        assert written() == [str(path)]
        assert written() == [f"{path} is up to date"]
        assert written("--overwrite") == [str(path)]
        assert written("--x", "time") == [str(path)]
        later = path.stat().st_mtime + 10
        os.utime(own_run.hyperparameters, (later, later))
        assert written("--x", "time") == [str(path)]


class TestExperiment:
    @pytest.fixture
    def experiment(self, own_run: RunFolder) -> Path:
        """Three runs: one with caches, one of another learning rate, and one without caches."""
        fc = train_run(own_run.path.with_name("b"), "--model fc --width 8 --depth 2 --lr 0.1")
        shutil.copytree(own_run.path, own_run.path.with_name("c"))
        shutil.rmtree(fc.path.with_name("c") / "cache")
        return own_run.path.parent

    def write(self, experiment: Path, *flags: str) -> Page:
        argv = ["--save-dir", str(experiment.parent), "--experiment", experiment.name, *flags]
        (line,) = write_report(parse(PlotConfig, ["--report", *argv]))
        assert line == str(experiment / "report.html")
        return Page(Path(line).read_text())

    def test_runs_are_compared(self, experiment: Path) -> None:
        found = self.write(experiment, "--metrics", "performance,scale")
        head, *rows = found.table("The last evaluation")
        assert {"run", "--lr", "--model", "--depth", "--width", "test loss"} <= set(head)
        assert not {"--expid", "--seed", "--epochs"} & set(head)
        cells = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
        assert cells.keys() == {"a", "b", "c"}
        assert (cells["a"]["--lr"], cells["b"]["--lr"]) == ("0.05", "0.1")
        assert float(cells["a"]["accuracy"]) > 5
        assert 0 < float(cells["a"]["exact law"]) < 1e-4
        assert cells["b"]["exact law"] == "–"
        journal = (experiment / "b" / "logs" / "metrics.jsonl").read_text().splitlines()
        assert cells["b"]["test loss"] == f"{json.loads(journal[-1])['test_loss']:.4g}"
        assert len(found.images) == 2
        assert len(set(found.ids)) == len(found.ids)

    def test_no_caches_at_all(self, experiment: Path) -> None:
        shutil.rmtree(experiment / "a" / "cache")
        with pytest.raises(UserError, match=r"no run of .*/e has a cache to draw; run 'python"):
            self.write(experiment)


class TestMistakes:
    def test_unknown_experiment(self, tmp_path: Path) -> None:
        flags = ["--report", "--save-dir", str(tmp_path), "--experiment", "none"]
        done = subprocess.run(
            [sys.executable, str(ROOT / "plot.py"), *flags],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"plot.py: error: {tmp_path / 'none'} has no runs; train one")

    def test_formats_are_not_for_reports(self, cached: RunFolder) -> None:
        line = mistake("plot", cached, "--report --format png")
        assert line == (
            "--format: not read with --report, whose figures are within the page (command line)"
        )


def test_defaults_are_those_that_the_command_line_fills_in() -> None:
    argv = ["--model", "fc", "--optimizer", "adam", "--beta1", "0.8"]
    changed = [flag for flag in flags(parse(TrainConfig, argv).flat()) if flag.changed]
    assert [(flag.name, flag.value, flag.default) for flag in changed] == [
        ("--beta1", "0.8", "0.9"),
        ("--model", "fc", "conv"),
        ("--optimizer", "adam", "sgd"),
    ]


def test_phases_of_an_annealed_run_are_a_table(tmp_path: Path) -> None:
    annealing = "--optimizer momentum --momentum 0.5 --lr 0.1 --schedule lr-halving"
    run = train_run(tmp_path / "e" / "x", f"--model logistic {annealing} --anneal-steps 2")
    extract_run(run)
    cache_run(run, "--metrics performance")
    (line,) = write_report(parse(PlotConfig, ["--report", *flags_of(run)]))
    text = Path(line).read_text()
    # lr/(1 - momentum) stays 0.2: momentum is 0.75 where lr is 0.05
    assert Page(text).table("Phases") == [
        ["step", "epoch", "batch size", "lr", "momentum"],
        ["0", "0", "240", "0.1", "0.5"],
        ["12", "2", "240", "0.05", "0.75"],
    ]
    assert "batch_size" not in text


def test_one_phase_is_not_worth_a_table(page: Path) -> None:
    text = page.read_text()
    assert "<dt>phases" not in text
    assert "Phases" not in text


def test_differences_between_runs() -> None:
    runs = [{"lr": 0.1, "seed": 1, "expid": "a"}, {"lr": 0.2, "seed": 1, "wd": 0.0, "expid": "b"}]
    assert differing(runs) == {"--lr": ["0.1", "0.2"], "--wd": ["–", "0"]}


def test_defaults_of_models_and_optimizers_are_no_differences() -> None:
    given = ("--model fc --lr 0.1", "--model conv --optimizer adam --lr 0.1 --eps 1e-6")
    runs = [parse(TrainConfig, arguments.split()).flat() for arguments in given]
    assert runs[0]["depth"] != runs[1]["depth"]
    assert runs[0]["beta1"] != runs[1]["beta1"]
    assert differing(runs).keys() == {"--model", "--optimizer", "--eps"}


@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome")
class TestBrowser:
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking")

    def browse(self, folder: Path, *arguments: str) -> str:
        """What the browser prints; its profile is the test's own."""
        assert BROWSER is not None
        profile = f"--user-data-dir={folder / 'profile'}"
        done = subprocess.run(
            [BROWSER, *self.flags, "--no-first-run", profile, *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout

    def test_tables_and_figures_are_in_the_document(self, page: Path, tmp_path: Path) -> None:
        shown = Page(self.browse(tmp_path, "--dump-dom", f"file://{page}"))
        written = Page(page.read_text())
        assert shown.tables == written.tables
        assert shown.images == written.images

    def test_pictures_are_painted(self, page: Path, tmp_path: Path) -> None:
        """Where each picture should be there are dark and coloured points on a white ground."""
        alone = tmp_path / "alone.html"
        policy = re.search(r"<meta http-equiv=[^>]+>", page.read_text())
        pictures = re.findall(r"<img [^>]+>", page.read_text())
        assert policy is not None
        heights = [int(image["height"]) for image in Page(page.read_text()).images]
        style = "<style>body { margin: 0 } img { display: block }</style>"
        alone.write_text(f"<!DOCTYPE html>{policy[0]}{style}{''.join(pictures)}")
        pixels = self.painted(alone, tmp_path, sum(heights))
        ends = np.cumsum([0, *heights])
        for start, end in itertools.pairwise(ends):
            part = pixels[start:end]
            assert part.min() < 0.3
            assert np.ptp(part, axis=2).max() > 0.3
            assert np.mean(part.min(axis=2) > 0.99) > 0.5

    def test_no_picture_is_no_paint(self, tmp_path: Path) -> None:
        """The check of the paint can fail."""
        broken = tmp_path / "broken.html"
        broken.write_text('<!DOCTYPE html><img width=200 height=100 src="data:image/png;base64,">')
        pixels = self.painted(broken, tmp_path, 100)
        assert np.ptp(pixels, axis=2).max() < 0.3

    def painted(self, page: Path, folder: Path, height: int) -> NDArray[np.float32]:
        shot = folder / "shot.png"
        size = f"--window-size=900,{height}"
        self.browse(folder, size, "--hide-scrollbars", f"--screenshot={shot}", f"file://{page}")
        pixels: NDArray[np.float32] = matplotlib.image.imread(shot)[:, :, :3]
        return pixels
