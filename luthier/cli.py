"""The command line: one verb, one job. A verb's job module is imported when the verb runs, so `--help` never loads
torch.

Exit codes: 0 done (a verdict of SHIP_TUNE for run, evaluate and decide), 10 SHIP_PROMPT, 11 SHIP_NOTHING,
12 INCONCLUSIVE, 20 verify found a broken link, 74 a disk that refuses (what stood before stands),
75 interrupted and resumable, 1 crash, 2 usage.
"""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
import tempfile
import time
import traceback
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn

# Two spinning OpenMP threads on busy cores are 18x slower; must be set before torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Large pages for torch's buffers; read at its first allocation. Measured: 300,000 page faults a training step without.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# oneDNN keeps the machine code of its last 1,024 products; each length of micro-batch brings a dozen,
# and live memory rose by 6 MiB a step with all of them kept. One run of the demo at 32 cost no more processor time.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

import typer

from luthier import __version__
from luthier.config.secrets import redact
from luthier.errors import DISK_REFUSES, Interrupted, LuthierError, machine_refusal

app = typer.Typer(
    name="luthier",
    help="From raw examples and a foundation model to a tune you can defend shipping, or the measured reason not to.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
config_app = typer.Typer(help="Look at the resolved project file.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(config_app, name="config")
data_app = typer.Typer(help="Hold data against traffic or other data; freeze rows.", no_args_is_help=True)
app.add_typer(data_app, name="data")

Output = Annotated[Path, typer.Option("--output", "-o", help="Where to write the project file.")]
Config = Annotated[Path, typer.Option("--config", "-c", help="The project file.")]
Set = Annotated[
    list[str], typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one key; may be repeated.")
]
Profile = Annotated[
    int, typer.Option("--profile", min=0, metavar="N", help="Profile N training steps: where time and memory go.")
]
NO_OVERRIDES: list[str] = []


class DriftPolicy(str, Enum):
    """What `data compare` does when the rows are far from the traffic."""

    warn = "warn"
    refuse = "refuse"


class FrozenSplit(str, Enum):
    """What `data freeze` can freeze."""

    test = "test"
    dev = "dev"


def _job(name: str) -> Any:
    return importlib.import_module(f"luthier.jobs.{name}")


def _project(config: Path, overrides: list[str]) -> Any:
    return importlib.import_module("luthier.config.load").load_project(config, overrides)


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"luthier {__version__}")
        raise typer.Exit


@app.command()
def init(
    files: Annotated[list[Path], typer.Argument(help="Your data: CSV, JSON, JSONL, Parquet or Arrow files.")],
    output: Output = Path("luthier.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a commented project file from a look at your data."""
    _job("init").init(files, output, force=force)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="The file of rows.")],
    target: Annotated[Path, typer.Argument(help="The new file; its ending names the container and the compression.")],
    to: Annotated[str, typer.Option("--to", help="The format of its rows; without it the columns stay.")] = "",
    source_format: Annotated[str, typer.Option("--from", help="The format of the source's rows.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a file of rows in another format or container; a row that it cannot hold whole is set aside by name."""
    _job("convert").convert(source, target, to=to, source_format=source_format, force=force)


@app.command("cut-layers")
def cut_layers(
    base: Annotated[str, typer.Argument(help="As model.base: an alias, a model folder or a project's output_dir.")],
    out: Annotated[Path, typer.Argument(help="The new folder.")],
    keep: Annotated[int, typer.Option("--keep", min=2, help="How many layers, evenly spaced.")],
) -> None:
    """Write a base with some of another one's layers: what a student of distillation starts from."""
    _job("cut_layers").cut_layers(base, out, keep=keep)


@app.command(name="import")
def import_(
    source: Annotated[Path, typer.Argument(help="An Axolotl YAML.")],
    output: Output = Path("luthier.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a project file from an Axolotl configuration; each key without a counterpart is named."""
    _job("import_axolotl").import_file(source, output, force=force)


@app.command()
def run(
    config: Config = Path("luthier.yaml"),
    overrides: Set = NO_OVERRIDES,
    profile: Profile = 0,
    pilot: Annotated[bool, typer.Option("--pilot", help="One small run instead: 1,000 rows, r 8, one epoch.")] = False,
) -> None:
    """The main job: prepare, train, build, evaluate, publish. Skips stages whose inputs have not changed."""
    began, project = time.perf_counter(), _project(config, overrides)
    job = _job("pilot").pilot if pilot else _job("run").run
    raise typer.Exit(job(project, profile=profile, began=began))


@app.command()
def ladder(config: Config = Path("luthier.yaml"), overrides: Set = NO_OVERRIDES) -> None:
    """Small runs one step apart: do more rows, rank or epochs help? Ends in a diff; judged on dev rows alone."""
    _job("ladder").ladder(_project(config, overrides))


@app.command()
def prepare(config: Config = Path("luthier.yaml"), overrides: Set = NO_OVERRIDES) -> None:
    """Read, clean, deduplicate, split and tokenise the data; write the data report."""
    _job("prepare").prepare(_project(config, overrides))


@app.command()
def train(config: Config = Path("luthier.yaml"), overrides: Set = NO_OVERRIDES, profile: Profile = 0) -> None:
    """Train the adapter (prepares the data first when needed; resumes what was interrupted)."""
    began = time.perf_counter()
    _job("train").train(_project(config, overrides), profile=profile, began=began)


@app.command()
def build(config: Config = Path("luthier.yaml"), overrides: Set = NO_OVERRIDES) -> None:
    """Merge, quantise and prove every artefact equal to what was trained."""
    _job("build").build(_project(config, overrides))


@app.command()
def evaluate(
    config: Config = Path("luthier.yaml"),
    overrides: Set = NO_OVERRIDES,
    adapter: Annotated[Path | None, typer.Option(help="Judge this PEFT adapter folder instead.")] = None,
    model: Annotated[Path | None, typer.Option(help="Judge this model folder instead of this project's.")] = None,
) -> None:
    """Judge base, best prompt and tune on the sealed test rows; end with a verdict."""
    raise typer.Exit(_job("evaluate").evaluate(_project(config, overrides), adapter=adapter, model=model))


@app.command()
def decide(
    samples: Annotated[Path, typer.Option("--from", help="samples.jsonl of an evaluation.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write verdict.json here.")] = None,
) -> None:
    """Reproduce the verdict from recorded samples: no model, no GPU, byte for byte."""
    raise typer.Exit(_job("decide").decide(samples, output))


@app.command()
def chat(
    config: Config = Path("luthier.yaml"),
    overrides: Set = NO_OVERRIDES,
    model: Annotated[Path | None, typer.Option(help="Talk to this model folder instead of the build.")] = None,
    base: Annotated[bool, typer.Option("--base", help="Talk to the untuned base.")] = False,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Say this one thing and exit.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
) -> None:
    """Talk to the model; answers stream."""
    _job("chat").chat(config, overrides, model=model, base=base, message=message, max_new_tokens=max_new_tokens)


@app.command()
def mask(
    config: Config = Path("luthier.yaml"),
    overrides: Set = NO_OVERRIDES,
    rows: Annotated[int, typer.Option(min=0, help="How many training rows to show.")] = 2,
) -> None:
    """Show which tokens are trained, and the table of proof obligations."""
    _job("mask").mask(_project(config, overrides), num_rows=rows)


@app.command()
def plan(
    config: Config = Path("luthier.yaml"),
    overrides: Set = NO_OVERRIDES,
    machine: Annotated[str | None, typer.Option(help="Plan for this machine of the catalogue.")] = None,
    all_machines: Annotated[bool, typer.Option("--all-machines", help="Also time and price every machine.")] = False,
    monthly_requests: Annotated[
        int | None, typer.Option(min=1, help="Compare the monthly cost of serving this many requests.")
    ] = None,
    assume: Annotated[list[str], typer.Option(metavar="KEY=VALUE", help="Another price or size of it.")] = NO_OVERRIDES,
    probe: Annotated[bool, typer.Option("--probe", help="Time this machine's products first.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say what a run will need before it starts: memory, time, money, and what to change when it does not fit."""
    project = _project(config, overrides)
    if probe:
        _job("machine").probe_and_keep(_job("plan").open_shapes(project)[0], project.spec.train.num_threads)
    asked = {"machine": machine, "all_machines": all_machines, "monthly_requests": monthly_requests}
    _job("plan").plan(project, **asked, assume=assume, as_json=as_json)


@app.command()
def recommend(
    config: Config = Path("luthier.yaml"),
    overrides: Set = NO_OVERRIDES,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the project file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Propose values for the knobs that the project leaves open, each with its reason and source."""
    _job("recommend").recommend_knobs(_project(config, overrides), output=output, as_json=as_json)


@app.command("lr-probe")
def lr_probe(
    config: Config = Path("luthier.yaml"),
    overrides: Set = NO_OVERRIDES,
    steps: Annotated[int, typer.Option(min=10, max=1000, help="How many rates, one step each.")] = 40,
    lowest: Annotated[float, typer.Option("--from", help="The first rate.")] = 1e-6,
    highest: Annotated[float, typer.Option("--to", help="The last rate.")] = 1.0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the curve as an HTML page.")] = None,
) -> None:
    """Try rising learning rates on the run's own rows and propose one; changes nothing."""
    _job("lr_probe").lr_probe(_project(config, overrides), steps=steps, lowest=lowest, highest=highest, output=output)


@app.command()
def diagnose(
    config: Config = Path("luthier.yaml"),
    overrides: Set = NO_OVERRIDES,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say in words what went wrong with a run, with evidence and the next move. Runs nothing."""
    _job("diagnose").diagnose_run(_project(config, overrides), as_json=as_json)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A stage's folder, a published one, or a run's output_dir.")],
    base: Annotated[Path | None, typer.Option(help="Where the base model lies now.")] = None,
    data: Annotated[Path | None, typer.Option(help="The folder that raw file names start from now.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Count what is not here as broken.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print every link as JSON.")] = False,
) -> None:
    """Check every file and every link from a result back to raw data and base; exit 20 names what is broken."""
    raise typer.Exit(_job("verify").verify(folder, base=base, data=data, strict=strict, as_json=as_json))


@app.command()
def doctor(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Also look at this project's output_dir.")
    ] = None,
    constraints: Annotated[Path | None, typer.Option(help="Hold installed versions against this file of pins.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Let warnings count too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check versions, start-up code, GPU, disk, clock, memory, threads and speed, and say how to mend what is wrong."""
    raise typer.Exit(_job("doctor").doctor(config=config, constraints=constraints, strict=strict, as_json=as_json))


@app.command("verify-split")
def verify_split(
    folder: Annotated[Path, typer.Argument(help="A folder of `luthier prepare`.")],
    threshold: Annotated[
        float | None, typer.Option(min=0.01, max=1.0, help="Similarity; by default what the preparation states.")
    ] = None,
) -> None:
    """Recompute the proof of a split from the prepared files alone."""
    raise typer.Exit(_job("verify_split").verify(folder, threshold))


@data_app.command("compare")
def data_compare(
    traffic: Annotated[Path, typer.Argument(help="A sample of real requests: JSONL, CSV, ...")],
    config: Config = Path("luthier.yaml"),
    overrides: Set = NO_OVERRIDES,
    policy: Annotated[DriftPolicy, typer.Option(help="refuse exits with 1 when something is far.")] = DriftPolicy.warn,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write an HTML page here.")] = None,
) -> None:
    """Hold train and eval rows against real traffic: topics, lengths, turns, system prompt, language, style."""
    project = _project(config, overrides)
    raise typer.Exit(_job("data").compare(project, traffic, policy=policy.value, output=output))


@data_app.command("diff")
def data_diff(
    a: Annotated[Path, typer.Argument(help="A folder of `luthier prepare`.")],
    b: Annotated[Path, typer.Argument(help="Another one.")],
) -> None:
    """Two preparations side by side; exit 1 when a row that was judged on is trained on now."""
    raise typer.Exit(_job("data").diff(a, b))


@data_app.command("freeze")
def data_freeze(
    name: Annotated[str, typer.Option(help="What the frozen set is called.")],
    config: Config = Path("luthier.yaml"),
    overrides: Set = NO_OVERRIDES,
    split: Annotated[FrozenSplit, typer.Option(help="Which split.")] = FrozenSplit.test,
) -> None:
    """Register a split as a frozen evaluation set: no later preparation trains on its rows, nor on rows like them."""
    _job("data").freeze(_project(config, overrides), split.value, name)


@config_app.command("show")
def config_show(config: Config = Path("luthier.yaml"), overrides: Set = NO_OVERRIDES) -> None:
    """Print the resolved project file with the origin of each value."""
    _job("config").show(_project(config, overrides))


@config_app.command("keys")
def config_keys() -> None:
    """List every key with its default and meaning."""
    _job("config").keys()


def _say(kind: str, text: str) -> None:
    typer.secho(f"{kind}: ", fg={"error": "red", "hint": "cyan"}[kind], bold=True, nl=False, err=True)
    typer.echo(redact(text), err=True)


def _crash_report(error: BaseException) -> Path:
    handle, name = tempfile.mkstemp(prefix="luthier-crash-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(f"luthier {__version__}, Python {sys.version}\n\n")
        file.write(redact("".join(traceback.format_exception(error))))
    return Path(name)


_stopped: list[Interrupted] = []


def _stop(signum: int, frame: object) -> None:
    _stopped.append(Interrupted("stopped", hint="finished stages stand; the same command goes on from there"))
    raise _stopped[0]


def _end(error: LuthierError) -> NoReturn:
    _say("error", str(error))
    if error.hint:
        _say("hint", error.hint)
    sys.exit(error.exit_code)


def main() -> None:
    """Entry point: turns every error into a message, a hint and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show must not end a run
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    try:
        app(standalone_mode=True)
    except Exception as error:
        if _stopped and not isinstance(error, Interrupted):  # raised amid other work, which made another error of it
            _end(_stopped[0])
        if isinstance(error, LuthierError):
            _end(error)
        if refused := machine_refusal(error):
            _say("error", refused[0])
            _say("hint", refused[1])
            sys.exit(DISK_REFUSES)
        _say("error", f"internal: {type(error).__name__}: {error}")
        _say("hint", f"this is a bug in luthier; please report it with {_crash_report(error)}")
        sys.exit(1)
