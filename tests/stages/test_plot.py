"""plot.py, used as a user would: in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import h5py
import matplotlib.image
import pytest
from PIL import Image

from tests.metrics.test_figures import LAYERS, write_law, write_performance
from Utils.rundir import RunFolder

ROOT = Path(__file__).parents[2]
FLAGS = ("--experiment", "demo", "--expid", "fc")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with caches of two laws, one of them absent from the model, and of performance."""
    run = RunFolder(tmp_path / "results" / "demo" / "fc")
    write_law(run.cache("scale"), LAYERS, closed={"conv1": [0, 1, 2, 3]})
    write_law(run.cache("translation"), {}, metric="translation")
    write_performance(run.cache("performance"))
    return run


def plot(
    run: RunFolder, *flags: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run plot.py in the folder that holds ``results``."""
    return subprocess.run(
        [sys.executable, str(ROOT / "plot.py"), *FLAGS, *flags],
        cwd=run.path.parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}),
        capture_output=True,
        text=True,
        check=False,
    )


def drawn(run: RunFolder, *flags: str) -> list[str]:
    """The lines that a successful plot.py prints, its figures' paths below the run folder."""
    done = plot(run, *flags)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.replace("results/demo/fc/img/", "").splitlines()


def mistake(run: RunFolder, *flags: str, environment: dict[str, str] | None = None) -> str:
    """The one line that explains the user's mistake."""
    done = plot(run, *flags, environment=environment)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    return line.removeprefix("plot.py: error: ")


class TestFigures:
    def test_every_cache_is_drawn_as_pdf_and_png(self, run: RunFolder) -> None:
        assert drawn(run) == [
            "scale.pdf",
            "scale.png",
            "translation: not drawn, the network has nothing of this kind",
            "performance.pdf",
            "performance.png",
        ]
        folder = run.path / "img"
        assert {path.name for path in folder.iterdir()} == {
            f"{name}.{extension}"
            for name in ("scale", "performance")
            for extension in ("pdf", "png")
        }

    def test_files_are_valid_and_name_cache_and_command(self, run: RunFolder) -> None:
        drawn(run, "--metrics", "scale", "--format", "pdf,png,svg")
        origin = (
            "drawn from results/demo/fc/cache/scale.h5 by: python plot.py --experiment demo "
            "--expid fc --metrics scale --format pdf,png,svg"
        )
        pdf = run.figure("scale", "", "pdf").read_bytes()
        assert pdf.startswith(b"%PDF-")
        assert pdf.rstrip().endswith(b"%%EOF")
        assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") == 1
        assert origin.encode() in pdf
        assert b"CreationDate" not in pdf

        png = run.figure("scale", "", "png")
        pixels = matplotlib.image.imread(png)
        assert pixels.shape[1] == 6.8 * 300
        assert pixels.min() < 0.1 < 0.9 < pixels.max()
        with Image.open(png) as image:
            assert image.info["Description"] == origin

        svg = run.figure("scale", "", "svg")
        ElementTree.parse(svg)
        assert origin in svg.read_text()

    def test_same_cache_gives_the_same_bytes(self, run: RunFolder) -> None:
        flags = ("--format", "pdf,png,svg", "--overwrite")
        drawn(run, *flags)
        before = {path: path.read_bytes() for path in (run.path / "img").iterdir()}
        drawn(run, *flags)
        assert before == {path: path.read_bytes() for path in (run.path / "img").iterdir()}

    def test_another_folder(self, run: RunFolder) -> None:
        assert drawn(run, "--metrics", "scale", "--plot-dir", "paper") == [
            "paper/scale.pdf",
            "paper/scale.png",
        ]
        assert not (run.path / "img").exists()

    def test_suffix_is_part_of_the_names(self, run: RunFolder) -> None:
        write_law(run.cache("scale", "-late"), LAYERS)
        assert drawn(run, "--suffix=-late", "--format", "png") == ["scale-late.png"]

    def test_momentum_metrics_of_upstream_are_aliases(self, run: RunFolder) -> None:
        names = "scale-momentum,scale"
        assert drawn(run, "--metrics", names, "--format", "svg") == ["scale.svg"]

    def test_layers_are_chosen_where_a_metric_has_them(self, run: RunFolder) -> None:
        write_law(run.cache("rescale"), {"conv1|conv2": 2}, metric="rescale")
        lines = drawn(run, "--layers", "classifier", "--format", "svg")
        assert "rescale: not drawn, it has none of these layers" in lines
        assert "scale.svg" in lines

    def test_many_layers_are_summed_with_a_remark(self, run: RunFolder) -> None:
        write_law(run.cache("scale"), {f"conv{i}": 2 for i in range(14)})
        lines = drawn(run, "--metrics", "scale", "--format", "svg")
        assert lines == [
            "scale.svg",
            "scale: sums of 14 layers drawn; for their units, choose with --layers",
        ]


class TestUpToDate:
    flags = ("--metrics", "performance", "--format", "svg,png")
    figures = ("performance.svg", "performance.png")

    def test_second_run_draws_nothing(self, run: RunFolder) -> None:
        assert drawn(run, *self.flags) == [*self.figures]
        before = run.figure("performance", "", "svg").stat().st_mtime_ns
        assert drawn(run, *self.flags) == [f"{name} is up to date" for name in self.figures]
        assert run.figure("performance", "", "svg").stat().st_mtime_ns == before

    def test_newer_cache_is_drawn_again(self, run: RunFolder) -> None:
        drawn(run, *self.flags)
        later = run.figure("performance", "", "svg").stat().st_mtime + 10
        os.utime(run.cache("performance"), (later, later))
        assert drawn(run, *self.flags) == [*self.figures]

    def test_cache_of_other_features_is_drawn_again(self, run: RunFolder) -> None:
        drawn(run, *self.flags)
        stat = run.cache("performance").stat()
        with h5py.File(run.cache("performance"), "r+") as h5:
            h5.attrs["features_hash"] = "other"
        os.utime(run.cache("performance"), ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert drawn(run, *self.flags) == [*self.figures]

    def test_other_options_are_drawn_again(self, run: RunFolder) -> None:
        drawn(run, *self.flags)
        flags = (*self.flags, "--x", "time")
        assert drawn(run, *flags) == [*self.figures]
        assert drawn(run, *flags) == [f"{name} is up to date" for name in self.figures]

    def test_missing_format_is_added(self, run: RunFolder) -> None:
        drawn(run, *self.flags)
        run.figure("performance", "", "png").unlink()
        assert drawn(run, *self.flags) == ["performance.svg is up to date", "performance.png"]

    def test_overwrite_draws_again(self, run: RunFolder) -> None:
        drawn(run, *self.flags)
        assert drawn(run, *self.flags, "--overwrite") == [*self.figures]


class TestMistakes:
    def test_no_cache(self, run: RunFolder) -> None:
        for path in (run.path / "cache").iterdir():
            path.unlink()
        assert mistake(run) == (
            "results/demo/fc has no cache to draw; "
            "run 'python cache.py --experiment demo --expid fc' first"
        )
        assert not (run.path / "logs").exists()

    def test_missing_cache_names_the_command_that_makes_it(self, run: RunFolder) -> None:
        assert mistake(run, "--metrics", "rescale", "--suffix", "2", "--save-dir", "./results") == (
            "results/demo/fc/cache/rescale2.h5 does not exist; run 'python cache.py --experiment "
            "demo --expid fc --save-dir ./results --metrics rescale --suffix 2' first"
        )

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--metrics", "scal"], "unknown metric 'scal'; did you mean 'scale'?"),
            (["--layers", "conv3"], "--layers: unknown layer 'conv3'; did you mean 'conv2'?"),
            (["--format", "pdf,jpg"], "--format: unknown format 'jpg';"),
            (["--format", ""], "needs at least one of pdf, png, svg"),
            (["--max-units", "0"], "--max-units 0: input should be greater"),
            (["--suffix", "a/b"], "--suffix a/b: must be a part of a file name"),
            (["--x", "epoch"], "invalid choice 'epoch' for argument '--x'"),
            (["--layer"], "unknown flag '--layer'; did you mean '--layers'?"),
        ],
    )
    def test_flags(self, run: RunFolder, flags: list[str], message: str) -> None:
        assert message in mistake(run, *flags)
        assert not (run.path / "img").exists()

    def test_damaged_cache(self, run: RunFolder) -> None:
        cache = run.cache("scale")
        cache.write_bytes(cache.read_bytes()[:2000])
        assert mistake(run) == (
            "results/demo/fc/cache/scale.h5 is damaged or no HDF5 file; "
            "run cache.py for this run again, with --overwrite"
        )

    def test_run_that_is_being_drawn(self, run: RunFolder) -> None:
        with run.lock("plot"):
            line = mistake(run)
        assert line.startswith(f"results/demo/fc: plot is already running (pid {os.getpid()} on ")
        assert drawn(run, "--metrics", "scale", "--format", "svg") == ["scale.svg"]

    def test_folder_that_cannot_be_written(self, run: RunFolder) -> None:
        (run.path / "img").write_text("a file where the folder should be")
        assert "cannot access results/demo/fc/img" in mistake(run)

    def test_no_latex(self, run: RunFolder, tmp_path: Path) -> None:
        environment = {"PATH": "", "MPLCONFIGDIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
        line = mistake(run, "--use-tex", environment=environment)
        assert line.startswith("--use-tex: ")
        assert line.endswith("; mend LaTeX or use --no-use-tex")


def test_help_and_usage_errors_do_not_wait_for_matplotlib() -> None:
    for flags, code in ((["--help"], 0), (["--lr", "1"], 2)):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", str(ROOT / "plot.py"), *flags],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code
        assert "pydantic" in done.stderr
        assert "matplotlib" not in done.stderr
        assert "torch" not in done.stderr


@pytest.mark.parametrize("name", ["plots", "infinite_width"])
def test_notebook_is_committed_without_outputs(name: str) -> None:
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
