"""Export, whole: a tiny model becomes an artifact that every backend runs alike, or nothing remains."""

from __future__ import annotations

import dataclasses
import errno
import json
import os

import numpy as np
import pytest

from flatlm.export import exporter, frontier
from flatlm.export.bigrams import bigrams
from flatlm.export.recipe import RECIPES
from flatlm.export.sources import open_source
from flatlm.runtime.backends import open_backend
from flatlm.runtime.cli import main
from flatlm.runtime.drafting.bigrams import load_bigrams
from flatlm.runtime.errors import ResourceError, SourceError, UsageError
from flatlm.runtime.format.artifact import open_artifact, verify_artifact
from flatlm.runtime.options import BackendOptions
from tests.tiny_models import TinyShape, tiny_model, tiny_weights, write_safetensors

TINY = {"windows": 2, "alphas": (0.5,)}


def quiet(stage):
    return lambda done, total: None


def export(source_folder, out, name="edge", changes=None, **options):
    recipe = dataclasses.replace(RECIPES[name], **TINY, **(changes or {}))
    return exporter.export(open_source(str(source_folder)), out, recipe, tell=quiet, **options)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("source") / "tiny", architecture="qwen2", seed=3)


@pytest.fixture(scope="module")
def exported(source, tmp_path_factory):
    return export(source, tmp_path_factory.mktemp("out") / "tiny-edge")


def test_the_bigram_table_holds_what_follows_most_often():
    assert bigrams([3, 1, 3, 1, 3, 2, 0, 2, 0, 4], 6).tolist() == [2, 3, 0, 1, -1, -1]


def test_drafting_finds_the_bigram_table_in_the_artifact(exported):
    table = load_bigrams(exported.path, exported.manifest.vocab_size)
    assert table is not None
    assert (table >= 0).any()
    assert "bigrams.i32" in exported.manifest.files


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("edge", {}),
        ("edge", {"kv": "int8"}),
        ("edge", {"head_bits": "4"}),
        ("w8a8", {"kv": "int8"}),
        ("nested", {}),
        ("nested", {"kv": "int8"}),
        ("nested", {"activations": "static", "weight_scale": "tensor"}),
        ("paper", {}),
        ("naive8", {}),
    ],
)
def test_every_backend_gives_the_same_logits_to_the_last_bit(source, tmp_path, name, changes):
    pytest.importorskip("onnxruntime")
    path = export(source, tmp_path / name, name, changes).path
    artifact = open_artifact(path)
    ids = np.random.default_rng(0).integers(0, artifact.manifest.vocab_size, 40)
    logits = {}
    for backend in ("native", "numpy", "ort"):
        opened = open_backend(backend, artifact, BackendOptions(ctx=64))
        logits[backend] = np.concatenate([opened.forward(ids[:33], 33), opened.forward(ids[33:], 7)])
        opened.close()
    assert np.array_equal(logits["native"].view(np.int32), logits["numpy"].view(np.int32))
    assert np.array_equal(logits["native"], logits["ort"])


def test_an_artifact_verifies_and_reports_each_layer(exported):
    manifest = verify_artifact(exported.path)
    linears = [
        row for row in manifest.layers if row["name"].endswith(("qkv", "out", "gate_up", "down", "head"))
    ]
    assert len(linears) == len(manifest.layers) > 4
    assert all(row["bits"] in (4, 8) and row["error"] >= 0 for row in linears)
    assert manifest.totals["check"]["kl_to_float"] < 1


def test_the_command_line_answers_from_it(exported, capsys):
    assert main(["generate", str(exported.path), "-p", "Hello", "-n", "4", "--json"]) == 0
    assert '"backend": "native"' in capsys.readouterr().out.splitlines()[-1]


def test_an_existing_folder_is_kept_unless_forced(source, exported):
    before = (exported.path / "flatlm.json").read_bytes()
    with pytest.raises(UsageError, match=r"exists already.*--force"):
        export(source, exported.path)
    assert (exported.path / "flatlm.json").read_bytes() == before
    export(source, exported.path, "w8a8", force=True)
    assert open_artifact(exported.path).manifest.recipe == "w8a8"
    assert [entry.name for entry in exported.path.parent.iterdir()] == [exported.path.name]


def raising(error):
    def raises(*args, **kwargs):
        raise error

    return raises


def test_a_full_disk_leaves_nothing_behind_where_nothing_was_decided(source, tmp_path, monkeypatch):
    monkeypatch.setattr(exporter, "copy_files", raising(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(ResourceError, match=f"disk of {tmp_path} is full; nothing"):
        export(source, tmp_path / "model", say=pytest.fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (OSError(errno.ENOSPC, "No space left"), ResourceError, "is full; make room"),
        (OSError(errno.EFBIG, "File too large"), ResourceError, "takes no file this large; make room"),
        (OSError(errno.EIO, "Input/output error"), OSError, "Input/output error"),
    ],
)
def test_after_an_error_the_same_command_goes_on(source, tmp_path, monkeypatch, error, raised, message):
    monkeypatch.setattr(exporter, "write_manifest", raising(error))
    told: list[str] = []
    with pytest.raises(raised, match=message):
        export(source, tmp_path / "model", say=told.append)
    place = tmp_path / ".model.export"
    assert told == [
        f"stopped by an error; the same command goes on from here (what is done is kept in {place})"
    ]
    assert not (place / "artifact").exists()
    kept = sorted(path.name for path in (place / "journal").iterdir())
    with pytest.raises(raised):  # and a second time
        export(source, tmp_path / "model")
    assert sorted(path.name for path in (place / "journal").iterdir()) == kept
    monkeypatch.undo()
    monkeypatch.setattr("flatlm.export.measure.transform", raising(AssertionError("a block was done again")))
    monkeypatch.setattr("flatlm.export.quantize.transform", raising(AssertionError("a block was done again")))
    export(source, tmp_path / "model")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_calibration_text_that_is_not_there_touches_nothing(source, tmp_path):
    (tmp_path / ".model.export" / "artifact").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"typo\.txt"):
        export(source, tmp_path / "model", text=tmp_path / "typo.txt")
    assert (tmp_path / ".model.export" / "artifact").is_dir()


def test_a_folder_that_is_filled_during_the_work_is_kept(source, tmp_path, monkeypatch):
    def compare(*args):
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "thesis").write_text("x")
        return {}

    monkeypatch.setattr(exporter, "_compare", compare)
    with pytest.raises(UsageError, match=r"model exists already and has no flatlm\.json"):
        export(source, tmp_path / "model", force=True)
    assert (tmp_path / "model" / "thesis").read_text() == "x"
    assert any((tmp_path / ".model.export" / "journal").glob("*.npz"))


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_modes_of_an_artifact_follow_the_umask(source, tmp_path, umask):
    before = os.umask(umask)
    try:
        made = export(source, tmp_path / "model").path
    finally:
        os.umask(before)
    assert made.stat().st_mode & 0o777 == 0o777 & ~umask
    assert {entry.stat().st_mode & 0o777 for entry in made.iterdir()} == {0o666 & ~umask}


def test_the_command_line_asks_before_a_source_is_fetched(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("flatlm.export.sources.open_source", raising(AssertionError("too late")))
    (tmp_path / "papers").mkdir()
    assert main(["export", "owner/model", str(tmp_path / "papers"), "--force"]) == 2
    assert "is an empty folder" in capsys.readouterr().err


def test_tokens_without_rows_are_refused_before_anything_is_computed(tmp_path, monkeypatch):
    folder = tiny_model(tmp_path / "source")
    (folder / "generation_config.json").write_text('{"eos_token_id": 5000}')
    monkeypatch.setattr(exporter, "quantize", lambda *_: pytest.fail("computed"))
    with pytest.raises(SourceError, match="token 5000"):
        export(folder, tmp_path / "model", "w8a8")
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_a_row_that_is_no_number_ends_the_export_though_no_text_meets_it(tmp_path):
    weights = tiny_weights(TinyShape(tied=False))
    weights["model.embed_tokens.weight"][290] = np.nan
    folder = tiny_model(tmp_path / "source", tied=False)
    write_safetensors(folder / "model.safetensors", weights)
    with pytest.raises(SourceError, match=r"model\.embed_tokens\.weight holds nan in row 290"):
        export(folder, tmp_path / "model", "w8a8")
    assert not (tmp_path / "model").exists()


def test_what_the_source_notes_is_said(tmp_path):
    folder, said = tiny_model(tmp_path / "source"), []
    config = {"chat_template": [{"name": "rag", "template": "R"}]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    export(folder, tmp_path / "model", "w8a8", say=said.append)
    assert any("chat templates called rag and none called default" in line for line in said)


@pytest.mark.parametrize("calls", [1, 2])
def test_an_interrupt_while_folders_are_swapped_leaves_the_old_one(tmp_path, monkeypatch, calls):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "which").write_text(name)
    replace, left = os.replace, [calls]

    def interrupted(a, b):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        replace(a, b)

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        exporter._rename_into_place(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "which").read_text() == "old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["new", "old"]


def test_a_size_below_the_smallest_choice_is_refused_before_anything_is_rounded(
    source, tmp_path, monkeypatch
):
    def smallest(head_bits):
        monkeypatch.setattr("flatlm.export.quantize._round_all", raising(AssertionError("too late")))
        with pytest.raises(UsageError, match=r"--size 0.02: the smallest is 0\.\d+ MB") as refused:
            export(source, tmp_path / "model", changes={"size": 0.02, "head_bits": head_bits})
        monkeypatch.undo()
        return float(str(refused.value).split()[-2])

    given = smallest("4")
    assert given <= smallest("auto") < smallest("8")
    made = export(source, tmp_path / "model", changes={"size": given, "head_bits": "4"})
    assert made.manifest.totals["bytes"] <= 1.02e6 * given


def test_an_interrupt_leaves_neither_a_new_folder_nor_a_damaged_old_one(source, tmp_path, monkeypatch):
    out = export(source, tmp_path / "model").path

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(exporter, "_compare", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(source, out, force=True)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".model.export", "model"]
    verify_artifact(out)
    monkeypatch.undo()
    export(source, out, force=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_the_frontier_replaces_pictures_only(tmp_path, monkeypatch):
    monkeypatch.setattr(frontier, "_matplotlib", lambda: None)
    frontier.check(tmp_path / "new.png")
    (tmp_path / "old.png").write_bytes(frontier.PNG + b"...")
    frontier.check(tmp_path / "old.png")
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match=r"thesis\.tex: this is there and no PNG"):
        frontier.check(tmp_path / "thesis.tex")


def test_the_frontier_is_a_table_and_a_picture(source, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "frontier.png"
    arguments = [
        "--size",
        "0.13",
        "--sigmas",
        "2.2,3",
        "--calibration-windows",
        "2",
        "--frontier",
        str(picture),
    ]
    assert main(["export", str(source), str(tmp_path / "model"), *arguments]) == 0
    rows = capsys.readouterr().out.split("(predicted; bits of the file per weight)")[1].strip().splitlines()
    assert len(rows) > 5
    assert sum(row.endswith("chosen") for row in rows) == 1
    sizes, divergences = zip(*((float(row.split()[0]), float(row.split()[2])) for row in rows), strict=True)
    assert list(sizes) == sorted(sizes)
    assert list(divergences) == sorted(divergences, reverse=True)
    assert picture.read_bytes().startswith(b"\x89PNG")
