"""``tfc ci``: pipelines from the file to the reports. Figures of time and memory are made up where a gate is what is tested."""

from __future__ import annotations

import itertools
import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_harness import tfc

pytest.importorskip("yaml", reason="pip install PyYAML")
pytest.importorskip("onnx", reason="pip install onnx")
pytest.importorskip("onnxruntime", reason="pip install onnxruntime")

import onnx
from onnx import numpy_helper

from trustformers_ir.ir.diagnostics import CompilerError
from trustformers_ir.tools.ci import run as running
from trustformers_ir.tools.ci.amounts import duration, number, percent, size
from trustformers_ir.tools.ci.build import make
from trustformers_ir.tools.ci.measure import Measured
from trustformers_ir.tools.ci.outcome import Made
from trustformers_ir.tools.ci.pipeline import read_pipeline

BERT = "random:bert?hidden_size=16&num_hidden_layers=1&num_attention_heads=2&intermediate_size=16&vocab_size=16&max_position_embeddings=16"
ONE = f"""
version: 1
baseline: baseline.json
threads: 1
models:
  tiny:
    source: {BERT}
    probes: 1
    calls: 3
    dims: {{batch: 1, seq: 4}}
    formats: [onnx]
gates:
  accuracy: {{grow: 900%}}
  size: {{max: 1MB, grow: 2%}}
  latency: {{max: 1s, grow: 25%}}
  memory: {{max: 4GB, grow: 10%}}
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What calls take and need, instead of measuring it; how often somebody asked."""
    figures: dict[str, float] = {"median": 0.005, "memory": 50e6, "asked": 0}

    def measure(path: str, arrays: Any, threads: int, calls: int) -> Measured:
        figures["asked"] += 1
        return Measured(figures["median"], figures["median"], 3, 0.1, int(figures["memory"]), "nobody")

    monkeypatch.setattr(running, "measure", measure)
    return figures


@pytest.fixture
def ci(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any], str]]:
    """Runs ``p.yaml``: the exit code, the report and stderr."""

    def call(text: str, *words: str) -> tuple[int, dict[str, Any], str]:
        Path("p.yaml").write_text(text)
        code, _, err = tfc(capsys, "ci", "p.yaml", *words)
        report = Path("build/report.json")
        return code, json.loads(report.read_text()) if report.exists() else {}, err

    return call


def states(report: dict[str, Any], name: str = "tiny.onnx") -> dict[str, str]:
    """The gates of a file."""
    (file,) = [f for m in report["models"] for f in m["files"] if f["name"] == name]
    return {c["name"]: c["state"] for c in file["checks"]}


def untimed(data: Any) -> Any:
    """A report without what depends on the time, in the order in which it is written."""
    if isinstance(data, dict):
        return [(k, untimed(v)) for k, v in data.items() if k not in ("written_at", "seconds")]
    return [untimed(v) for v in data] if isinstance(data, list) else data


def failures() -> dict[str, str]:
    """The red testcases of the JUnit report, with their messages."""
    root = ET.parse("build/junit.xml").getroot()
    cases = {f"{c.get('classname')} {c.get('name')}": c for c in root.iter("testcase")}
    assert root.get("tests") == str(len(cases))
    red = {name: found.get("message", "") for name, c in cases.items() if (found := c.find("failure")) is not None}
    assert root.get("failures") == str(len(red))
    return red


class Page(HTMLParser):
    """Whether every tag of a page is closed where it should be; what it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


# -- a whole run --------------------------------------------------------------------------------------------------------------


def test_a_green_pipeline_with_everything_real(ci: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Three formats, made, read again, executed and measured; the reports say the same; the baseline comes and is compared with."""
    text = ONE.replace("[onnx]", "[onnx, {format: tfc, quantize: 'int8{min_size=16}', name: small}, {format: tfc, gates: {latency: none}}]")
    code, report, err = ci(text, "--update-baseline")
    assert code == 0, err
    assert "baseline.json holds the figures of this run now" in report["baseline"]
    files = report["models"][0]["files"]
    assert [(f["name"], f["state"]) for f in files] == [("tiny.onnx", "holds"), ("small.tfc", "holds"), ("tiny.tfc", "holds")]
    for f in files:
        figures = f["figures"]
        assert figures["size_bytes"] == Path(f["path"]).stat().st_size
        assert 0 < figures["latency_seconds"] < 1 and 20e6 < figures["memory_bytes"] < 4e9
        assert figures["measured"]["dims"] == {"batch": 1, "seq": 4} and figures["measured"]["threads"] == 1
        assert 0 < figures["relative_error"] <= f["worst"]["tolerance"] and f["measured"]["calls"] == 3
    assert {f["measured"]["by"].split()[0] for f in files} == {"onnxruntime", "trustformers_ir"}
    assert "latency.max" in states(report, "small.tfc") and "latency.max" not in states(report, "tiny.tfc")
    agreement = json.loads(Path("build/tiny.agreement.json").read_text())
    assert agreement["holds"] and {v["by"] for v in agreement["files"]} == {"onnxruntime", "onnx.reference", "native code"}
    assert failures() == {}
    page = Page(Path("build/report.html").read_text())
    assert "Everything holds" in page.text and "small.tfc" in page.text and not {t for t, _ in page.tags} & {"script", "link", "img"}
    assert [a["href"] for t, a in page.tags if t == "a"] == ["tiny.agreement.json"]
    first = Path("baseline.json").read_text()
    assert [*json.loads(first)["figures"]["tiny"]] == ["small.tfc", "tiny.onnx", "tiny.tfc"]
    code, out, _ = tfc(capsys, "ci", "p.yaml", "--json", "--summary", "s.md", "-o", "again", "--only", "tiny")
    again = json.loads(out)
    sizes = [c for f in again["models"][0]["files"] for c in f["checks"] if c["name"] in ("size.grow", "accuracy.grow")]
    assert {c["state"] for c in sizes} == {"holds"} and {c["stored"] == c["figure"] for c in sizes} == {True}, "files are the same each time"
    assert Path("baseline.json").read_text() == first and "| tiny | small.tfc |" in Path("s.md").read_text()


# -- what is red ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "gate", "said"),
    [
        ("max: 1MB", "max: 1kB", "size.max", "more than 1 kB"),
        ("max: 1s", "max: 1ms", "latency.max", "the median of a call is 5 ms, more than 1 ms"),
        ("max: 4GB", "max: 1MB", "memory.max", "resident memory is 50 MB, more than 1 MB"),
        ("{grow: 900%}", "{relative: 1e-12}", "accuracy", "allowed is 1e-12"),
    ],
)
def test_each_gate_can_be_red(old: str, new: str, gate: str, said: str, ci: Any, measured: dict[str, float]) -> None:
    code, report, err = ci(ONE.replace(old, new))
    assert code == 1
    assert [name for name, state in states(report).items() if state == "fails"] == [gate]
    ((name, message),) = failures().items()
    assert name == f"tiny.tiny.onnx {gate}" and said in message and said in err
    page = Page(Path("build/report.html").read_text())
    assert "1 of 4 gates does not hold" in page.text and said in page.text
    assert sum(t == "td" and a.get("class") == "fails" for t, a in page.tags) == 1
    if gate != "accuracy":
        line = next(n for n, text in enumerate(ONE.splitlines(), 1) if f"  {gate.split('.')[0]}: {{{old}" in text)
        assert f"p.yaml:{line}" in err, "the line that sets the bound"
    assert measured["asked"] == (3 if gate == "latency.max" else 1), "a busy machine gets two more tries"


def test_a_wrong_weight_turns_one_file_red(ci: Any, measured: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written is what is read: nothing of the source is left when a file is compared."""

    def corrupting(source: Any, file: Any, path: str) -> Made:
        made = make(source, file, path)
        if path.endswith("bad.onnx"):
            model = onnx.load(path)
            weight = next(t for t in model.graph.initializer if t.name.endswith("intermediate.dense.weight") or len(t.dims) == 2)
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.25), weight.name))
            onnx.save(model, path)
        return made

    monkeypatch.setattr(running, "make", corrupting)
    code, report, err = ci(ONE.replace("[onnx]", "[onnx, {format: onnx, name: bad}, tfc]"))
    assert code == 1
    assert {f["name"]: f["state"] for f in report["models"][0]["files"]} == {"tiny.onnx": "holds", "bad.onnx": "fails", "tiny.tfc": "holds"}
    ((name, message),) = failures().items()
    assert name == "tiny.bad.onnx accuracy" and "by onnxruntime" in message and "of the error come in at" in message
    assert "trustformers_ir/models/" in message and "trustformers_ir/models/" in err, "the op's line in the model's source"
    (file,) = [f for f in report["models"][0]["files"] if f["name"] == "bad.onnx"]
    assert file["culprit"].startswith(message.split("come in at '")[1].split("'")[0])
    assert "bad.onnx" in Page(Path("build/report.html").read_text()).text


def test_what_fails_keeps_nothing_else_from_being_made(ci: Any, measured: dict[str, float]) -> None:
    """A model that cannot be read, and a file that cannot be written, next to what can: exit code 2, and all of it in the reports."""
    Path("build").mkdir()
    Path("build/tiny.gguf").write_text("of an earlier run")
    Path("m.tfir").write_text("no graph <b>at all</b>")
    broken = 'models:\n  broken: {source: m.tfir, formats: [onnx]}\n  odd: {source: "random:bert?hid\\aden=1", formats: [onnx]}'
    text = ONE.replace("[onnx]", "[gguf, onnx]").replace("models:", broken).replace(BERT, f"{BERT}&architecture=BertForMaskedLM")  # a head
    code, report, err = ci(text, "--update-baseline")
    assert code == 2
    found = {f["name"]: f["state"] for m in report["models"] for f in m["files"]}
    assert found == {"broken.onnx": "error", "odd.onnx": "error", "tiny.gguf": "error", "tiny.onnx": "holds"}
    assert not Path("build/tiny.gguf").exists() and Path("build/tiny.onnx").exists()
    assert "m.tfir:1" in err and "no tensor of the architecture bert" in err
    root = ET.parse("build/junit.xml").getroot()
    assert {c.get("classname") for c in root.iter("testcase") if c.find("error") is not None} == {
        "broken.broken.onnx", "odd.odd.onnx", "tiny.tiny.gguf",
    }  # fmt: skip
    assert r"hid\x07den" in Path("build/junit.xml").read_text(), "XML has no place for control characters"
    page = Page(Path("build/report.html").read_text())
    assert "could not be read" in page.text and "<b>at all</b>" in page.text, "shown, not obeyed"
    assert not Path("baseline.json").exists() and "stays as it is" in report["baseline"]


# -- the baseline -----------------------------------------------------------------------------------------------------------------


def test_the_life_of_a_baseline(ci: Any, measured: dict[str, float]) -> None:
    code, report, _ = ci(ONE)
    assert code == 0 and {s for n, s in states(report).items() if n.endswith("grow")} == {"not compared"}
    assert "there is no baseline.json yet" in report["baseline"] and "4 could not be compared" in report["verdict"]
    assert ci(ONE, "--strict")[0] == 1
    assert ci(ONE, "--update-baseline")[0] == 0
    code, report, _ = ci(ONE, "--strict")
    assert code == 0 and set(states(report).values()) == {"holds"}
    assert untimed(ci(ONE)[1]) == untimed(report), "the same each time"
    stored = json.loads(Path("baseline.json").read_text())
    row = stored["figures"]["tiny"]["tiny.onnx"]

    def changed(**figures: Any) -> dict[str, str]:
        new = json.loads(json.dumps(stored))
        new["figures"]["tiny"]["tiny.onnx"] |= figures
        Path("baseline.json").write_text(json.dumps(new))
        code, report, _ = ci(ONE)
        red = {c["name"]: c["said"] for f in report["models"][0]["files"] for c in f["checks"] if c["state"] == "fails"}
        assert code == (1 if red else 0) and len(failures()) == len(red)
        return red

    assert "+3.0%" in changed(size_bytes=int(row["size_bytes"] / 1.03))["size.grow"] and changed(size_bytes=int(row["size_bytes"] / 1.01)) == {}
    assert [*changed(latency_seconds=0.0039)] == ["latency.grow"] and changed(latency_seconds=0.0041) == {}
    assert [*changed(memory_bytes=45_000_000)] == ["memory.grow"] and [*changed(relative_error=1e-12)] == ["accuracy.grow"]
    elsewhere = row["measured"] | {"cpu": "Abacus 3000"}
    assert changed(latency_seconds=0.0001, memory_bytes=1, measured=elsewhere) == {}, "another machine"
    report = json.loads(Path("build/report.json").read_text())
    (said,) = [c["said"] for c in report["models"][0]["files"][0]["checks"] if c["name"] == "latency.grow"]
    assert states(report)["latency.grow"] == "not compared" and "Abacus 3000" in said
    for broken in ("{", '{"version": 1, "figures": {"tiny": {"tiny.onnx": {"size_bytes": "wide"}}}}'):
        Path("baseline.json").write_text(broken)
        code, _, err = ci(ONE)
        assert code == 2 and "TFC6021" in err and not Path("build/report.json").exists()


# -- the file -----------------------------------------------------------------------------------------------------------------------

BAD = """
version: 2
outptu: build
threads: none
models:
  bert:
    source: nowhere/model
    probes: many
    formats:
      - onx
      - {format: gguf, opset: 20, quantize: q8_1}
      - {format: tfc, quantize: int9, by: [onnxruntime]}
      - {format: mlpackage, gates: {latency: {max: 1ms}}}
      - {format: tfc, name: x}
      - {format: tfc, name: x.tfc}
    gates:
      size: {max: 100XB, growth: 2%}
      memory: {grow: 2}
      accuracy: none
  bare: {}
  bare: 5
gates:
  latency: {max: 3, grow: 2%}
  speed: !!python/object:os.system ls
"""


def test_all_that_is_wrong_with_a_file_at_once(ci: Any) -> None:
    code, report, err = ci(BAD)
    assert code == 2 and not report and not Path("build").exists()
    pairs = [(said, where) for said, where in itertools.pairwise(err.splitlines()) if where.startswith("  --> p.yaml:")]
    found = [(int(where.split(":")[1]), said.split(": ", 1)[1]) for said, where in pairs]
    assert [n for n, _ in found] == sorted(n for n, _ in found)
    expected = {
        2: ["version is 2"],
        3: ["no key 'outptu'"],
        4: ["threads is 'none'"],
        7: ["'nowhere/model' does not exist"],
        8: ["'many'"],
        10: ["the format is 'onx'"],
        11: ["opset says nothing of gguf files", "no type 'q8_1'"],
        12: ["no quantization recipe 'int9'", "by is 'onnxruntime'"],
        13: ["latency of mlpackage files is not measured"],
        15: ["two files are called 'x.tfc', the first in line 14"],
        17: ["size.max is '100XB'", "no key 'growth'"],
        18: ["memory.grow is '2'"],
        19: ["accuracy cannot be left out"],
        20: ["no 'source'", "no 'formats'"],
        21: ["stands twice, first in line 20"],
        23: ["latency.max is '3'", "names none"],
        24: ["no key 'speed'", "the tag"],
    }
    for line, texts in expected.items():
        for text in texts:
            assert any(n == line and text in said for n, said in found), (line, text, err)
    assert len(found) == sum(map(len, expected.values()))
    for near in ("'output'", "'onnx'", "'q8_0'", "'int8'", "'grow'"):
        assert f"did you mean {near}?" in err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("a: [1", "is no YAML"),
        ("- 1", "not a mapping"),
        ("a: 1\n---\nb: 2", "is no YAML"),
        ("[" * 1200, "nested too deeply"),
        ("a: &a [*a]", "no key 'a'"),
        ("version: 1\nmodels: {x: {source: *gone}}", "undefined alias"),
    ],
)
def test_files_that_are_none(text: str, said: str, ci: Any) -> None:
    code, _, err = ci(text)
    assert code == 2 and said in err and "p.yaml" in err and "Traceback" not in err


def test_anchors_defaults_and_layers_of_gates() -> None:
    Path("models").mkdir()
    Path("models/p.yaml").write_text(
        f"""
version: 1
models:
  a: &a
    source: "{BERT}"
    probes: 2
    gates: {{size: {{max: 2MiB}}}}
    formats: [{{format: tfc, quantize: "int8{{activations=dynamic}}", gates: {{size: {{max: 1.5kB}}, memory: none}}}}, {{format: gguf, dtype: f16}}]
  b: {{<<: *a, probes: 5, formats: [onnx]}}
gates: {{memory: {{max: 1GB}}, latency: {{max: 10ms}}, accuracy: {{relative: 1e-3}}}}
"""
    )
    pipeline = read_pipeline("models/p.yaml")
    a, b = pipeline.models
    assert pipeline.output == "models/build" and pipeline.baseline is None and (a.probes, b.probes, b.source) == (2, 5, BERT)
    assert [f.name for f in a.files] == ["a-int8-activations-dynamic.tfc", "a-f16.gguf"] and [f.name for f in b.files] == ["b.onnx"]
    bounds = {key: bound.value for key, bound in a.files[0].gates.items()}
    assert bounds["size", "max"] == 1500 and bounds["memory", "max"] == float("inf") and bounds["accuracy", "relative"] == 1e-3
    assert {key: bound.value for key, bound in b.files[0].gates.items()} == {
        ("memory", "max"): 1e9, ("latency", "max"): 0.01, ("accuracy", "relative"): 1e-3, ("size", "max"): 2 << 20,
    }  # fmt: skip


def test_amounts() -> None:
    assert (size("100MB"), size("1.5 GiB"), size("12"), size("3 kb")) == (1e8, 1.5 * 2**30, 12, 3000)
    assert (duration("10ms"), duration("1.5s"), percent("2%"), percent("12.5 %"), number("1e-3")) == (0.01, 1.5, 0.02, 0.125, 1e-3)
    wrong: list[tuple[Callable[[str], float], list[str]]] = [
        (size, ["MB", "1 PB", "-1kB", "1e3", "٣"]), (duration, ["10", "3 h"]), (percent, ["2", "x%"]), (number, ["0", "nan", "1e999", "inf"]),
    ]  # fmt: skip
    for parse, texts in wrong:
        for text in texts:
            with pytest.raises(ValueError, match="such as"):
                parse(text)


def test_without_the_package_that_reads_yaml(ci: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    code, _, err = ci(ONE)
    assert code == 2 and "TFC6007" in err and "pip install 'trustformers_ir[ci]'" in err


def test_requests(ci: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = ci(ONE, "--only", "tinny")
    assert code == 2 and "did you mean 'tiny'?" in err
    code, out, _ = tfc(capsys, "ci", "p.yaml", "--check", "--json")
    assert code == 0 and json.loads(out)["files"] == [{"model": "tiny", "path": "build/tiny.onnx", "options": ""}] and not Path("build").exists()
    text = ONE.replace("batch: 1, seq: 4", "batch: 1, sqe: 4")
    code, _, err = ci(text)
    assert code == 2 and "has no dim 'sqe'" in err and "did you mean 'seq'?" in err and "p.yaml:10" in err
    Path("file").write_text("")
    for words in (["-o", "file"], ["--summary", "no/such/s.md"]):
        code, _, err = ci(ONE, *words)
        assert code == 2 and "TFC6004" in err and words[1] in err
    with pytest.raises(CompilerError, match="No such file"):
        read_pipeline("nowhere.yaml")
