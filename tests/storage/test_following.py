"""How a service process follows the worker: without being asked again, and without making anybody wait."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

from storage.backends.sqlite import reader as reading
from tests.conftest import WAIT_S, batch, running_on, until


def reader_of(running, spec):
    return running.store._indexes.get(spec).reader


def ids_in(snapshot):
    return {one.part.id_of(row) for one in snapshot.parts for row in one.live.nonzero()[0].tolist()}


async def test_an_index_that_is_asked_is_caught_up_on_before_the_next_question(running):
    spec = await running.index()
    await running.store.snapshot(spec)

    written = await running.upsert(spec, batch(["a"], [[1, 0, 0, 0]]))
    await running.applied(spec, written)

    reader = reader_of(running, spec)
    await until(lambda: reader._opened.snapshot.applied == written.sequence)
    assert ids_in(reader.current()) == {"a"}


async def test_an_index_that_nobody_asks_is_not_read_as_it_is_written(running, monkeypatch):
    monkeypatch.setattr(reading, "FOLLOWED_S", 0.0)
    spec = await running.index()
    before = await running.store.snapshot(spec)
    for number in range(3):
        await running.applied(spec, await running.upsert(spec, batch([str(number)], [[1, 0, 0, number]])))
    await asyncio.sleep(0)

    assert reader_of(running, spec)._opened.snapshot is before
    assert ids_in(await running.store.snapshot(spec)) == {"0", "1", "2"}


async def test_questions_are_answered_with_all_that_is_applied_while_a_new_layout_is_opened(settings, monkeypatch):
    async with running_on(replace(settings, seal_mutations=5)) as running:
        spec = await running.index()
        await running.store.snapshot(spec)
        reader, let_go, is_opening = reader_of(running, spec), threading.Event(), threading.Event()
        honest = reader._open_segment

        def slow(*given):
            is_opening.set()
            assert let_go.wait(WAIT_S)
            return honest(*given)

        monkeypatch.setattr(reader, "_open_segment", slow)
        # given a seal whose segment takes long to open
        wanted = set()
        for number in range(5):
            wanted.add(str(number))
            await running.applied(spec, await running.upsert(spec, batch([str(number)], [[1, 0, 0, number]])))
        await until(lambda: reader.state().layout > 0)
        old = await running.store.snapshot(spec)
        await until(is_opening.is_set)

        # when others write, replace and delete meanwhile
        try:
            for number in range(5, 8):
                wanted.add(str(number))
                await running.applied(spec, await running.upsert(spec, batch([str(number)], [[1, 0, 0, number]])))
                assert ids_in(await running.store.snapshot(spec)) == wanted
            await running.applied(spec, await running.delete(spec, ["1", "6"]))
            wanted -= {"1", "6"}

            # then nobody waits for it, and nothing is missing or there twice, before and behind the change
            snapshot = await running.store.snapshot(spec)
            assert (snapshot.layout, ids_in(snapshot)) == (old.layout, wanted)
        finally:
            let_go.set()
        async with asyncio.timeout(WAIT_S):
            while (snapshot := await running.store.snapshot(spec)).layout == old.layout:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (snapshot.vectors, ids_in(snapshot)) == (len(wanted), wanted)


async def test_every_question_sees_what_info_named_before_it_whatever_is_built_meanwhile(small):
    async with running_on(replace(small, seal_mutations=7)) as running:
        spec = await running.index()
        seen: set[str] = set()

        async def write(writer: int) -> None:
            for number in range(25):
                id = f"{writer}-{number % 5}"
                written = await running.upsert(spec, batch([id], [[1, writer, number, 0.5]]))
                await running.applied(spec, written)
                seen.add(id)
                snapshot = await running.store.snapshot(spec)
                assert snapshot.applied >= written.sequence
                assert ids_in(snapshot) >= seen

        await asyncio.gather(*(write(writer) for writer in range(3)))
        await until(lambda: reader_of(running, spec).state().layout > 0)
        assert ids_in(await running.store.snapshot(spec)) == seen
