"""What the benchmarks check of themselves: a speed is measured on runs that learn, a page is what its results say."""

import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
LUTHIER = {"kind": "luthier", "dtype": "float32"}


def load_benchmark(name: str, monkeypatch):
    """benchmarks/<name>.py as a module."""
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def benchmark_checks(monkeypatch):
    """benchmarks/sft_vs_trl.py as a module."""
    return load_benchmark("sft_vs_trl", monkeypatch)


@pytest.mark.known_bug("BE")
@pytest.mark.parametrize("norms", [[0.0, 0.0], [1.2, 0.0], [1.2, float("nan")]])
def test_a_run_without_gradients_is_not_a_measurement(benchmark_checks, norms):
    benchmark_checks.check_learning({"grad_norms": [1.2, 0.4]}, LUTHIER)
    with pytest.raises(SystemExit, match="luthier float32: a gradient norm is not above zero"):
        benchmark_checks.check_learning({"grad_norms": norms}, LUTHIER)


@pytest.mark.known_bug("BE")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_whose_loss_stands_still_is_not_a_measurement(benchmark_checks, dtype):
    job, reference = LUTHIER | {"dtype": dtype}, {"losses": [2.0, 1.6, 1.2]}
    off = benchmark_checks.curve_distance({"losses": [2.0, 1.601, 1.199]}, reference)
    benchmark_checks.check_curve(off, job)
    assert 0 < off < 1e-3
    off = benchmark_checks.curve_distance({"losses": [2.0, 2.0, 2.0]}, reference)
    with pytest.raises(SystemExit, match=r"the loss curve is 66\.67% off float32"):
        benchmark_checks.check_curve(off, job)


def test_copies_go_and_an_engine_that_is_absent_is_named(tmp_path, monkeypatch):
    benchmark = load_benchmark("prepare_scale", monkeypatch)
    path = tmp_path / "rows.jsonl"
    assert benchmark.make(path, 12, num_rows=1000) == 1000
    texts = benchmark.read(path)
    assert len(texts) > len(set(texts)) > benchmark.luthier(path) > 800
    monkeypatch.setitem(sys.modules, "datatrove", None)
    assert "pip install" in benchmark.timed(benchmark.datatrove, path)["left_out"]


def test_the_page_of_the_methods_is_what_its_results_say(monkeypatch):
    """And a method that did not beat the base is named as such, and in no row."""
    methods = load_benchmark("methods", monkeypatch)
    results = methods.read_results()
    assert methods.PAGE.read_text(encoding="utf-8") == methods.page_of(results)
    page = methods.page_of(results | {"lora": results["lora"] | {"dev_loss": results["base"]["dev_loss"]}})
    assert "| `lora` |" not in page and "did not beat the base: lora." in page and "| `dora` |" in page
