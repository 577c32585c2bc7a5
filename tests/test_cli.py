"""flatlm.runtime.cli: exit status, what goes to stdout and what to stderr, and errors on one line."""

from __future__ import annotations

import argparse
import csv
import importlib
import io
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from flatlm.export import commands
from flatlm.kernels_arm.ops import NAMES
from flatlm.runtime import cli
from flatlm.runtime.errors import BackendError, UsageError
from flatlm.runtime.format.artifact import FileEntry, Manifest
from flatlm.runtime.format.graph import Graph
from tests.tiny_text import CHATML, FakeBackend, ScriptedBackend, byte_level, write_folder

MANIFEST = Manifest(
    name="tiny",
    architecture="llama",
    recipe="edge",
    vocab_size=300,
    context_length=128,
    parameters=1_500_000,
    bits_per_weight=4.2,
    files={"model.onnx": FileEntry("0" * 64, 2**20), "tokenizer.json": FileEntry("1" * 64, 5)},
)


class Machine:
    """A model folder, and the backends that open on it: name → a maker, or the reason why not."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.backends, self.opened = folder, {}, []
        answer = [*byte_level().encode("Paris 🙂.").ids, 0]
        self.backends["native"] = lambda: ScriptedBackend(answer, context=128)
        artifact = SimpleNamespace(path=folder, manifest=MANIFEST, graph=Graph())
        monkeypatch.setattr("flatlm.runtime.format.artifact.open_artifact", lambda path: artifact)
        monkeypatch.setattr("flatlm.runtime.backends.open_backend", self.open)

    def open(self, name, artifact, options):
        width = {"threads": options.threads, "context": options.ctx, "slots": options.batch}
        self.opened.append((name, {**width, "device": options.device}))
        maker = self.backends.get(name, "it is not there")
        if isinstance(maker, str):
            raise BackendError(maker)
        backend = maker()
        backend.name = name
        return backend


@pytest.fixture
def machine(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "model", byte_level(), {"chat_template": CHATML})
    return Machine(folder, monkeypatch)


@pytest.fixture
def flatlm(machine, capsys):
    """Runs a command line on the model; returns status, stdout and stderr."""

    def run(verb, *arguments):
        status = cli.main([verb, str(machine.folder), *arguments])
        return status, *capsys.readouterr()

    return run


def run_main(capsys, *arguments):
    return cli.main(list(arguments)), *capsys.readouterr()


# ---- the command as such


def test_help_lists_every_verb_and_imports_none(capsys):
    status, out, err = run_main(capsys, "--help")
    assert (status, err) == (0, "")
    assert all(f"  {verb} " in out for verb in cli.VERBS)


def test_no_verb_is_wrong_use(capsys):
    status, out, err = run_main(capsys)
    assert (status, out) == (2, "")
    assert "usage" in err


@pytest.mark.parametrize("verb", [verb for verb in cli.VERBS if verb not in ("export", "pull")])
def test_every_verb_has_help(capsys, verb):
    status, out, _ = run_main(capsys, verb, "--help")
    assert status == 0
    assert out.startswith(f"usage: flatlm {verb}")


def test_a_mistyped_verb_is_corrected(capsys):
    assert run_main(capsys, "genrate") == (
        2,
        "",
        "flatlm: unknown verb 'genrate'; did you mean 'generate'?\n",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temp", "hot"], "--temp 'hot': it must be a number from 0.0 to 100.0"),
        (["--top-p", "1.5"], "--top-p 1.5: it must be a number from 0.0 to 1.0"),
        (["-t", "0"], "--threads 0: it must be a whole number from 1 to 1024"),
        (["--backend", "nativ"], "--backend 'nativ'; did you mean 'native'?"),
        (["--bogus"], "unknown argument '--bogus' (see `flatlm generate --help`)"),
        (["-m", "other"], "give the model's folder once: as the first argument, or with -m"),
        (["-f", "x"], "-p and -f both give the prompt: use one"),
        (["-c", "999"], "--ctx 999 is more than the model was made for, 128 tokens"),
    ],
)
def test_wrong_use_is_one_line_on_stderr(flatlm, arguments, message):
    status, out, err = flatlm("generate", "-p", "hi", *arguments)
    assert (out, err) == ("", f"flatlm: {message}\n")
    assert status == (1 if "999" in arguments else 2)


@pytest.mark.parametrize("value", ["-hello", "-1+2=?", "-n", "- a list item", "--json", "---", "-", "--"])
@pytest.mark.parametrize("flags", [["-p"], ["--prompt"], ["-p", "hi", "--stop"], ["-p", "hi", "-sys"]])
def test_what_follows_a_flag_with_a_value_is_the_value(flatlm, flags, value):
    status, out, _ = flatlm("generate", *flags, value)
    assert (status, out[:1]) == (0, "P")


def test_a_flag_without_its_value_is_wrong_use(flatlm):
    assert flatlm("generate", "-p")[0] == 2
    assert "--predict '--json': it must be a" in flatlm("generate", "-p", "hi", "-n", "--json")[2]


def test_a_mistyped_flag_is_corrected(flatlm):
    message = "flatlm: unknown argument '--tmp=1'; did you mean '--temp'?\n"
    assert flatlm("generate", "-p", "hi", "--tmp=1") == (2, "", message)


@pytest.mark.parametrize("verb", ["info", "verify", "generate", "bench"])
def test_a_folder_without_a_model_is_one_line_on_stderr(capsys, tmp_path, verb):
    arguments = ["-p", "1"] if verb in ("generate", "bench") else []
    status, out, err = run_main(capsys, verb, str(tmp_path / "nothing"), *arguments)
    assert (status, out) == (1, "")
    assert err.startswith("flatlm: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("verb", ["export", "pull"])
def test_a_missing_extra_is_named(capsys, monkeypatch, verb):
    def missing(name):
        raise ModuleNotFoundError("No module named 'onnx'", name="onnx")

    monkeypatch.setattr(importlib, "import_module", missing)
    status, out, err = run_main(capsys, verb, "x")
    assert (status, out) == (1, "")
    assert "pip install flatlm[export]" in err


def test_verbs_of_export_come_from_its_commands(capsys, monkeypatch):
    def add_export(parser):
        parser.set_defaults(run=lambda args: print("exported") or 0)

    monkeypatch.setitem(sys.modules, "flatlm.export.commands", SimpleNamespace(add_export=add_export))
    assert run_main(capsys, "export") == (0, "exported\n", "")


def test_an_interrupt_anywhere_is_status_130(capsys, monkeypatch):
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("flatlm.runtime.format.artifact.open_artifact", interrupted)
    assert run_main(capsys, "info", "x") == (130, "", "flatlm: interrupted\n")


def test_importing_the_command_loads_nothing_heavy():
    code = (
        "import sys; from flatlm.runtime import cli, commands; cli.main(['--help'])\n"
        "names = 'numpy tokenizers jinja2 numba onnx onnxruntime export'\n"
        "heavy = set(names.split()) & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# ---- generate


def test_an_answer_is_stdout_and_its_cost_stderr(flatlm):
    status, out, err = flatlm("generate", "-p", "What is the capital of France?")
    assert (status, out) == (0, "Paris 🙂.\n")
    assert "t/s" in err
    assert "\x1b" not in out + err


def test_json_is_one_object_on_the_last_line_of_stdout(flatlm):
    status, out, _ = flatlm("generate", "-p", "hi", "--json")
    answer = json.loads(out.splitlines()[-1])
    assert (status, answer["text"], answer["finish_reason"], answer["backend"]) == (
        0,
        "Paris 🙂.",
        "stop",
        "native",
    )
    assert answer["timings"]["generated_tokens"] == len(answer["tokens"]) + 1 == 12


def test_options_reach_the_answer(flatlm):
    assert flatlm("generate", "-p", "hi", "-n", "2")[1] == "Pa\n"
    assert flatlm("generate", "-p", "hi", "--stop", "is")[1] == "Par\n"


@pytest.mark.parametrize(
    ("flags", "expected"), [([], "<|start|>user\nhi<|end|>\n<|start|>assistant\n"), (["--raw"], "hi")]
)
def test_the_chat_template_applies_unless_raw(flatlm, machine, flags, expected):
    backend = machine.backends["native"]()
    machine.backends["native"] = lambda: backend
    flatlm("generate", "-p", "hi", "-n", "1", *flags)
    assert backend.ids == byte_level().encode(expected).ids


def test_a_prompt_may_come_from_a_file_or_stdin(flatlm, machine, monkeypatch, tmp_path):
    (tmp_path / "prompt.txt").write_text("hello")
    assert flatlm("generate", "-f", str(tmp_path / "prompt.txt"))[0] == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello"))
    assert flatlm("generate")[0] == 0
    status, _, err = flatlm("generate", "-f", str(tmp_path / "missing.txt"))
    assert (status, "missing.txt cannot be read" in err) == (2, True)


def test_a_model_without_a_template_continues_the_prompt_and_says_so(flatlm, machine):
    write_folder(machine.folder, byte_level())
    status, out, err = flatlm("generate", "-p", "hi")
    assert (status, out) == (0, "Paris 🙂.\n")
    assert "no chat template" in err


def test_a_prompt_too_long_gives_both_numbers(flatlm):
    status, out, err = flatlm("generate", "--raw", "-p", "x" * 200)
    assert (status, out) == (1, "")
    assert "200 tokens long, the context holds 128" in err


def test_ctrl_c_keeps_what_was_produced_and_is_status_130(flatlm, machine):
    answer = byte_level().encode("Paris").ids
    machine.backends["native"] = lambda: ScriptedBackend(answer, interrupt_at=3, context=128)
    status, out, err = flatlm("generate", "-p", "hi")
    assert (status, out) == (130, "Par\n")
    assert "interrupted" in err
    status, out, _ = flatlm("generate", "-p", "hi", "--json")
    assert (status, json.loads(out)["text"]) == (130, "Par")


def test_ctrl_c_shows_text_that_waited_for_a_stop_text(flatlm, machine):
    answer = byte_level().encode("Paris").ids
    machine.backends["native"] = lambda: ScriptedBackend(answer, interrupt_at=3, context=128)
    assert flatlm("generate", "-p", "hi", "--stop", "r!")[1] == "Par\n"


def test_without_native_numpy_runs_with_a_loud_warning(flatlm, machine):
    machine.backends = {"numpy": machine.backends["native"], "native": "no kernels for riscv64"}
    status, out, err = flatlm("generate", "-p", "hi")
    assert (status, out) == (0, "Paris 🙂.\n")
    assert "flatlm: warning: the native backend cannot run here (no kernels for riscv64). Using numpy" in err


def test_a_backend_that_is_asked_for_is_not_replaced(flatlm, machine):
    machine.backends["ort"] = "needs the package onnxruntime"
    status, _, err = flatlm("generate", "-p", "hi", "--backend", "ort")
    assert (status, err) == (1, "flatlm: needs the package onnxruntime\n")


def test_backend_options_reach_the_backend(flatlm, machine):
    flatlm("generate", "-p", "hi", "-t", "2", "-c", "64")
    assert machine.opened == [("native", {"threads": 2, "context": 64, "device": "cpu", "slots": 1})]


# ---- chat


def chat(flatlm, monkeypatch, lines, *arguments):
    """Runs a conversation; a KeyboardInterrupt among the lines is a Ctrl-C at the prompt."""
    script = iter(lines)

    def read():
        line = next(script, EOFError)
        if not isinstance(line, str):
            raise line
        return line

    monkeypatch.setattr("flatlm.runtime.commands.chat._read_line", read)
    return flatlm("chat", *arguments)


def test_a_conversation_answers_each_line_until_the_end(flatlm, monkeypatch):
    status, out, _ = chat(flatlm, monkeypatch, ["hello", "", "again"])
    assert (status, out) == (0, "Paris 🙂.\nParis 🙂.\n")


def test_a_conversation_remembers_and_clear_forgets(flatlm, machine, monkeypatch):
    backend = machine.backends["native"]()
    machine.backends["native"] = lambda: backend
    chat(flatlm, monkeypatch, ["first", "second"], "--system", "Be brief.")
    text = byte_level().decode(backend.ids, skip_special_tokens=False)
    assert [part in text for part in ("Be brief.", "first", "Paris")] == [True] * 3
    chat(flatlm, monkeypatch, ["first", "/clear", "second", "/quit", "third"])
    assert byte_level().decode(backend.ids, skip_special_tokens=False).count("Paris") == 1


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(flatlm, machine, monkeypatch):
    answer = [*byte_level().encode("Paris").ids, 0]
    machine.backends["native"] = lambda: ScriptedBackend(answer, interrupt_at=3, context=128)
    status, out, _ = chat(flatlm, monkeypatch, ["hello", "again"])
    assert (status, out) == (0, "Par\nParis\n")


def test_ctrl_c_twice_leaves(flatlm, monkeypatch):
    status, out, err = chat(flatlm, monkeypatch, [KeyboardInterrupt, KeyboardInterrupt, "never"])
    assert (status, out) == (130, "")
    assert "again leaves" in err


@pytest.mark.parametrize("line", ["/etc/hosts has which form?", "/ what", "/clear the table", " /hlep", "/"])
def test_a_line_that_only_looks_like_a_command_is_asked(flatlm, machine, monkeypatch, line):
    backend = machine.backends["native"]()
    machine.backends["native"] = lambda: backend
    assert chat(flatlm, monkeypatch, [line])[:2] == (0, "Paris 🙂.\n")
    assert line in byte_level().decode(backend.ids, skip_special_tokens=False)


def test_a_mistyped_command_is_corrected_and_asks_nothing(flatlm, monkeypatch):
    status, out, err = chat(flatlm, monkeypatch, ["/hlep", "/help"])
    assert (status, out) == (0, "")
    assert "/hlep is no command; did you mean '/help'?" in err


def test_foreign_bytes_do_not_end_a_conversation(flatlm, monkeypatch):
    lines = io.TextIOWrapper(io.BytesIO(b"caf\xe9\nhello\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", lines)
    assert flatlm("chat")[:2] == (0, "Paris 🙂.\nParis 🙂.\n")


def test_what_cannot_be_asked_does_not_end_a_conversation(flatlm, monkeypatch):
    status, out, err = chat(flatlm, monkeypatch, ["\ud800", "hello"])
    assert (status, out, "not valid Unicode" in err) == (0, "Paris 🙂.\n", True)


def test_a_conversation_without_stdin_ends_at_once(flatlm, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert flatlm("chat")[:2] == (0, "")


def test_a_conversation_too_long_is_told_and_can_be_cleared(flatlm, monkeypatch):
    status, out, err = chat(flatlm, monkeypatch, ["x" * 200, "short"])
    assert (status, out) == (0, "Paris 🙂.\n")
    assert "/clear" in err


# ---- the other verbs


def test_info_prints_for_people_and_as_json(flatlm):
    status, out, _ = flatlm("info")
    assert (status, "tiny" in out, "edge" in out) == (0, True, True)
    assert json.loads(flatlm("info", "--json")[1])["parameters"] == 1_500_000


def test_bench_has_the_columns_of_llama_bench(flatlm, machine):
    machine.backends["native"] = lambda: FakeBackend(context=128)
    status, out, _ = flatlm("bench", "-p", "16,8", "-n", "4", "-r", "2")
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines())
    assert (status, head) == (0, ["model", "size", "params", "backend", "threads", "test", "t/s"])
    assert [row[5] for row in rows] == ["pp16", "pp8", "tg4"]
    assert rows[0][:4] == ["tiny", "1.00 MiB", "1.50 M", "native"]
    assert " ± " in rows[0][6]


def test_bench_measures_at_a_depth(flatlm, machine):
    backend = FakeBackend(context=128)
    machine.backends["native"] = lambda: backend
    (row,) = json.loads(flatlm("bench", "-p", "0", "-n", "4", "-d", "100", "-r", "1", "-o", "json")[1])
    assert row["test"] == "tg4 @ d100"
    status, _, err = flatlm("bench", "-p", "0", "-n", "4", "-d", "126")
    assert (status, "tg4 @ d126 does not fit the context of 128" in err) == (1, True)


def test_bench_opens_as_many_sequences_as_it_measures(flatlm, machine):
    machine.backends["native"] = lambda: FakeBackend(context=128, slots=4)
    arguments = ("-p", "0", "-n", "0", "-r", "1", "--batch", "2,4", "--rows", "3", "-d", "9", "-o", "json")
    found = {entry["test"]: entry["found"] for entry in json.loads(flatlm("bench", *arguments)[1])}
    assert [cost["rows"] for cost in found["sequences @ d9"]] == [1, 2, 4]
    assert [cost["rows"] for cost in found["rows @ d9"]] == [1, 3]
    assert machine.opened[0][1]["slots"] == 4


def test_only_the_native_backend_tells_its_operations(flatlm, machine):
    machine.backends["native"] = lambda: FakeBackend(context=128)
    status, _, err = flatlm("bench", "-p", "0", "-n", "4", "-r", "1", "--per-op")
    assert (status, "native backend" in err) == (2, True)


def test_bench_writes_json_and_csv(flatlm, machine):
    machine.backends["native"] = lambda: FakeBackend(context=128)
    (row,) = json.loads(flatlm("bench", "-p", "8", "-n", "0", "-r", "3", "-o", "json")[1])
    assert (row["test"], len(row["rates"]), row["size"]) == ("pp8", 3, 2**20)
    (row,) = csv.DictReader(io.StringIO(flatlm("bench", "-p", "8", "-n", "0", "-o", "csv")[1]))
    assert float(row["avg_ts"]) > 0


def test_eval_prints_perplexity_with_its_error(flatlm, machine, tmp_path):
    machine.backends["native"] = lambda: FakeBackend(context=128)
    (tmp_path / "text.txt").write_text("some text " * 10)
    arguments = ["ppl", "--text", str(tmp_path / "text.txt"), "--window", "16", "--tokens", "50"]
    status, out, _ = flatlm("eval", *arguments)
    assert (status, "45 tokens in 3 windows" in out, "±" in out) == (0, True, True)
    result = json.loads(flatlm("eval", *arguments, "--json")[1])
    assert (result["tokens"], result["windows"]) == (45, 3)
    assert flatlm("eval", "pplx", "--text", "x")[2] == "flatlm: unknown measure 'pplx'; did you mean 'ppl'?\n"


def test_parity_passes_where_backends_agree_and_fails_where_not(flatlm, machine):
    class Other(FakeBackend):
        def row(self):
            return -super().row()

    machine.backends = {name: lambda: FakeBackend(context=128) for name in ("native", "numpy")}
    status, out, err = flatlm("parity", "--prompts", "2", "--tokens", "4")
    assert (status, "100.00 %" in out, "ort is left out" in err) == (0, True, True)
    machine.backends["numpy"] = lambda: Other(context=128)
    status, out, _ = flatlm("parity", "--prompts", "2", "--tokens", "4", "--json")
    result = json.loads(out)
    assert (status, result["ok"], result["agreement"][0]["first_difference"]) == (1, False, [0, 0])


def test_parity_needs_two_backends(flatlm):
    status, _, err = flatlm("parity")
    assert (status, "at least two" in err) == (1, True)


def test_doctor_reports_machine_packages_and_processor(capsys):
    status, out, _ = run_main(capsys, "doctor", "--json")
    report = json.loads(out)
    assert (status, report["ok"]) == (0, True)
    assert set(report) == {"machine", "packages", "processor", "operations", "ok"}
    assert {"memory", "caches", "clock", "temperature"} <= set(report["machine"])
    assert set(report["operations"]) == set(NAMES.values())


@pytest.mark.parametrize(
    "facts",
    [
        {"kernels": "none", "library": "none", "not chosen": "avx2: lacks avx2"},
        {
            "kernels": "avx2: VPMADDUBSW",
            "library": "none: numba is not installed to compile them",
            "not chosen": "",
        },
    ],
)
def test_doctor_fails_loudly_where_models_would_be_slow(capsys, monkeypatch, facts):
    monkeypatch.setattr("flatlm.kernels_arm.library.describe", lambda: facts)
    status, out, err = run_main(capsys, "doctor")
    assert (status, "SLOW" in err, "product: numpy reference: SLOW" in out) == (1, True, True)


def test_doctor_names_the_caches_that_linux_shows(tmp_path):
    from flatlm.runtime.commands.doctor import caches

    folder = tmp_path / "index0"
    folder.mkdir()
    for name, text in (("level", "1"), ("type", "Data"), ("size", "32K"), ("shared_cpu_list", "0-1")):
        (folder / name).write_text(text + "\n")
    assert caches(tmp_path) == "L1 Data 32K (cores 0-1)"
    assert caches(tmp_path / "index0") == ""


# ---- export: what cannot be meant is said before any work


def export_recipe(*arguments):
    parser = argparse.ArgumentParser()
    commands.add_export(parser)
    return commands._recipe(parser.parse_args(["src", "out", *arguments]))


@pytest.mark.parametrize("flag", ["--size", "--bits-per-weight"])
def test_a_budget_replaces_the_recipes_limit_of_divergence(flag):
    assert export_recipe("--recipe", "paper").max_kl == 0.5
    assert export_recipe("--recipe", "paper", flag, "5").max_kl is None
    assert export_recipe("--recipe", "paper", "--max-kl", "0.3").max_kl == 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "5", "--max-kl", "1"], "--size and --max-kl each"),
        (["--size", "5", "--bits-per-weight", "5"], "--size and --bits-per-weight each"),
        (["--recipe", "w8a8", "--size", "5"], "--size: .* the same bits"),
        (["--weight-bits", "4", "--sigmas", "2,3"], "--sigmas: .* the same bits"),
        (["--recipe", "w8a8", "--bits-per-weight", "5"], "--bits-per-weight: .* the same bits"),
        (["--weight-bits", "4", "--max-kl", "0.1"], "--max-kl: .* the same bits"),
    ],
)
def test_flags_of_export_that_contradict_each_other_are_named(arguments, message):
    with pytest.raises(UsageError, match=message):
        export_recipe(*arguments)


def test_a_frontier_that_cannot_be_drawn_is_said_before_the_source_is_read(capsys, tmp_path, monkeypatch):
    def run(path):
        return run_main(capsys, "export", "nowhere", str(tmp_path / "out"), "--frontier", str(path))

    monkeypatch.setitem(sys.modules, "matplotlib", SimpleNamespace())
    missing = tmp_path / "missing"
    assert run(missing / "x.png") == (
        2,
        "",
        f"flatlm: --frontier {missing / 'x.png'}: there is no folder {missing}\n",
    )
    assert run(tmp_path)[2].endswith("this is a folder; name the file to make\n")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, err = run(tmp_path / "x.png")
    assert (status, err) == (1, "flatlm: --frontier needs matplotlib: pip install flatlm[bench]\n")
