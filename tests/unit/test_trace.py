"""A trace is a file that the usual viewers read, whole or cut off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace.errors import OptionError
from headrace.trace import NoTrace, TraceFile


def test_spans_are_complete_events_on_named_tracks(tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    with TraceFile(file) as trace, trace.span("outer", "sweep", number=7), trace.span("inner", "layer 0", num_bytes=10):
        pass
    events = json.loads(file.read_text())
    tracks = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    spans = {event["name"]: event for event in events if event["ph"] == "X"}
    assert {tracks[event["tid"]] for event in spans.values()} == {"outer", "inner"}
    assert spans["layer 0"]["args"] == {"num_bytes": 10}
    sweep, layer = spans["sweep"], spans["layer 0"]
    assert sweep["ts"] <= layer["ts"] and layer["ts"] + layer["dur"] <= sweep["ts"] + sweep["dur"]


def test_a_span_that_ends_with_an_error_is_recorded(tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    with TraceFile(file) as trace, pytest.raises(ValueError, match="oh"), trace.span("a", "failing"):
        raise ValueError("oh")
    assert "failing" in file.read_text()


def test_every_line_of_a_cut_off_file_is_an_event(tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    trace = TraceFile(file)
    with trace.span("a", "b"):
        pass
    trace._file.flush()
    lines = file.read_text().splitlines()
    assert lines[0] == "["
    assert [json.loads(line.rstrip(","))["ph"] for line in lines[1:]] == ["M", "X"]
    trace.close()


def test_a_file_that_cannot_be_written_is_an_option_error(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"--trace .*missing.t.json: cannot write"):
        TraceFile(tmp_path / "missing" / "t.json")


def test_without_a_trace_nothing_is_recorded() -> None:
    trace = NoTrace()
    with trace.span("a", "b", number=1):
        trace.close()
