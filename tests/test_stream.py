"""Who may use an LLM when: cancelling, newer answers, other threads, event loops; what errors tell."""

from __future__ import annotations

import asyncio
import threading

import pytest

from flatlm.runtime import errors
from flatlm.runtime.drafting.maxgram import MaxGram
from flatlm.runtime.drafting.spec import DraftSpec, assemble
from flatlm.runtime.errors import BackendError, ContextError, FlatlmError, UsageError
from flatlm.runtime.generation.answer import Prompt
from flatlm.runtime.llm import LLM
from flatlm.runtime.options import SamplingOptions
from flatlm.runtime.text.tokenizer import load_tokenizer
from tests.test_drafting import Scripted
from tests.tiny_text import CHATML, ScriptedBackend, byte_level, write_folder

TEXT = "Paris is the capital"


@pytest.fixture
def tokenizer(tmp_path):
    return load_tokenizer(write_folder(tmp_path, byte_level()))


@pytest.fixture
def make(tokenizer):
    """An LLM that answers any prompt with TEXT; `kind` is its backend's class."""

    def open_llm(kind=ScriptedBackend, **parts):
        answer = [*tokenizer.encode(TEXT, special=False), 0]
        return LLM.of(kind(answer, context=256), tokenizer, CHATML, **parts)

    return open_llm


class Paused(ScriptedBackend):
    """Waits in its fourth pass until it is told to go on."""

    def __init__(self, *parts, **options):
        super().__init__(*parts, **options)
        self.there, self.go_on = threading.Event(), threading.Event()

    def forward(self, ids, logits=1):
        if len(self.calls) == 3:
            self.there.set()
            assert self.go_on.wait(10)
        return super().forward(ids, logits)


def in_a_thread(work):
    """What `work` returns or raises in another thread; .join() gives it."""
    found = []

    def run():
        try:
            found.append(work())
        except FlatlmError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


# ---- cancelling


def test_an_answer_may_be_cancelled_while_it_is_read(make):
    stream = make().stream("x")
    assert next(stream) == "P"
    stream.cancel()
    assert list(stream) == []
    assert (stream.completion.text, stream.completion.finish_reason) == ("P", "cancelled")


def test_an_answer_may_be_cancelled_from_another_thread_in_the_midst_of_a_pass(make):
    llm = make(Paused)
    stream = llm.stream("x")
    thread, found = in_a_thread(stream.run)
    assert llm.backend.there.wait(10)
    stream.cancel()
    llm.backend.go_on.set()
    thread.join(10)
    assert (found[0].text, found[0].finish_reason) == ("Pari", "cancelled")
    assert llm.generate("x").text == TEXT


def test_who_is_cancelled_before_it_began_computes_nothing(make):
    llm = make()
    stream = llm.stream("x")
    stream.cancel()
    assert stream.run().finish_reason == "cancelled"
    assert llm.backend.calls == []


def test_an_answer_that_has_ended_cannot_be_cancelled(make):
    stream = make().stream("x")
    stream.run()
    stream.cancel()
    assert stream.completion.finish_reason == "stop"


def test_a_closed_stream_gives_no_more_and_keeps_what_it_has(make):
    stream = make().stream("x")
    next(stream)
    stream.close()
    assert list(stream) == []
    assert (stream.completion.text, stream.completion.finish_reason) == ("P", "interrupted")


def test_a_drafted_answer_that_is_left_between_two_of_its_pieces_keeps_all_that_was_written(make):
    drafted = make(Scripted, speculator=assemble([MaxGram()], DraftSpec(("maxgram",), ((10,),), 1.0)))
    stream = drafted.stream(TEXT + ". " + TEXT[:9])
    pieces = [next(stream) for _ in range(4)]
    stream.close()
    assert stream.completion.text.startswith("".join(pieces))
    assert TEXT.startswith(stream.completion.text)


# ---- one thread


def test_a_second_thread_is_told_that_one_thread_owns_an_llm(make):
    llm = make(Paused)
    thread, found = in_a_thread(llm.stream("x").run)
    assert llm.backend.there.wait(10)
    for use in (lambda: llm.generate("y"), lambda: next(llm.stream("y")), llm.close):
        with pytest.raises(UsageError, match="one thread owns an LLM"):
            use()
    with pytest.raises(UsageError, match="one thread owns an LLM"):
        list(llm.answer_many([Prompt([5], SamplingOptions(n=2))]))
    llm.backend.go_on.set()
    thread.join(10)
    assert found[0].text == TEXT
    assert llm.generate("x").text == TEXT


def test_a_progress_callback_cannot_begin_another_answer(make):
    llm = make()

    def progress(done, total):
        llm.generate("y")

    with pytest.raises(UsageError, match=r"one thread owns an LLM.*progress callback"):
        llm.stream("x", progress=progress).run()
    assert llm.generate("x").text == TEXT


def test_prompts_that_begin_answers_of_their_own_are_an_error_and_no_traceback_of_a_generator(make):
    llm = make()

    def prompts():
        yield Prompt([5], SamplingOptions(n=2))
        llm.generate("y")
        yield Prompt([6], SamplingOptions(n=2))

    with pytest.raises(UsageError, match="another answer was begun"):
        list(llm.answer_many(prompts()))


def test_a_superseded_stream_says_so_and_a_finished_one_does_not(make):
    llm = make()
    finished, left = llm.stream("x"), None
    finished.run()
    left = llm.stream("x")
    next(left)
    llm.generate("y")
    assert list(finished) == []
    for _ in range(2):
        with pytest.raises(UsageError, match=r"another answer was begun.*open the model a second time"):
            next(left)


def test_a_prompt_that_is_refused_ends_nobody(make):
    llm = make()
    stream = llm.stream("x")
    next(stream)
    with pytest.raises(ContextError):
        llm.stream("y" * 300)
    assert "P" + "".join(stream) == TEXT


def test_a_closed_llm_says_so(make):
    llm = make()
    stream = llm.stream("x")
    next(stream)
    llm.close()
    llm.close()
    for use in (
        lambda: llm.generate("x"),
        lambda: next(stream),
        lambda: llm.answer_many([]),
        lambda: llm.astream("x"),
    ):
        with pytest.raises(UsageError, match="closed"):
            use()


# ---- event loops


def test_a_text_comes_in_an_event_loop_which_goes_on_meanwhile(make):
    llm = make(Paused)

    async def run():
        stream = llm.astream("x")

        async def others():
            while not llm.backend.there.is_set():
                await asyncio.sleep(0.001)
            llm.backend.go_on.set()

        other = asyncio.create_task(others())
        pieces = [piece async for piece in stream]
        await other
        return pieces, stream.completion

    pieces, completion = asyncio.run(run())
    assert len(pieces) > 5
    assert ("".join(pieces), completion.text, completion.finish_reason) == (TEXT, TEXT, "stop")
    llm.close()


def test_a_chat_comes_in_an_event_loop(make):
    async def run():
        return await make().astream_chat([{"role": "user", "content": "hello"}]).run()

    assert asyncio.run(run()).text == TEXT


def test_a_task_that_is_cancelled_ends_its_answer_and_the_model_is_free(make):
    llm = make(Paused)

    async def run():
        stream = llm.astream("x")
        task = asyncio.create_task(stream.run())
        while not llm.backend.there.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        llm.backend.go_on.set()
        await stream.aclose()
        return stream.completion, llm.generate("x")

    left, answer = asyncio.run(run())
    assert (left.text, left.finish_reason) == ("Pari", "cancelled")
    assert answer.text == TEXT


def test_an_async_stream_is_cancelled_as_any_other(make):
    async def run():
        stream, pieces = make().astream("x"), []
        async for piece in stream:
            pieces.append(piece)
            stream.cancel()
        return pieces, stream.completion.finish_reason

    assert asyncio.run(run()) == (["P"], "cancelled")


def test_errors_come_where_an_async_stream_is_read(make):
    async def run():
        async for _ in make().astream("y" * 300):
            pass

    with pytest.raises(ContextError, match="context holds 256"):
        asyncio.run(run())


# ---- errors for programs


def test_every_error_has_a_code_of_its_own():
    classes = [FlatlmError]
    for one in classes:
        classes += one.__subclasses__()
    codes = [one.code for one in classes if one.__module__ == errors.__name__]
    assert len(set(codes)) == len(codes) > 10
    assert ContextError.code == "context_length_exceeded"
    assert BackendError("text").param is None


def test_an_error_names_the_option_at_fault(make):
    llm = make()
    for options, param in (({"temp": -1.0}, "temp"), ({"n": "x"}, "n"), ({"tmp": 1}, "tmp")):
        with pytest.raises(UsageError) as found:
            llm.generate("x", **options)
        assert (found.value.code, found.value.param) == ("invalid_request", param)
    with pytest.raises(ContextError) as too_long:
        llm.generate("y" * 300)
    assert (too_long.value.code, too_long.value.param) == ("context_length_exceeded", "prompt")
