"""A question ends in time, and nobody waits for somebody else's."""

import sqlite3
import threading
import time
from contextlib import closing

import pytest

from cliplet.errors import ConfigError
from cliplet.library.database import READERS, Database
from cliplet.library.deadline import within

# Hours of work, of which nothing is kept.
ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n"


@pytest.fixture
def database(tmp_path):
    Database.create(tmp_path / "records.sqlite").close()
    with closing(Database(tmp_path / "records.sqlite")) as database:
        yield database


def seconds_of(call):
    began = time.monotonic()
    call()
    return time.monotonic() - began


def test_what_takes_too_long_ends_and_the_next_question_is_answered(database):
    with within(0.2), pytest.raises(ConfigError, match="takes too long"):
        database.rows(ENDLESS)
    with within(5):
        assert database.value("format_version") == "1"


def test_all_that_is_asked_in_a_block_has_its_time_together(database):
    with within(0.2):
        assert database.value("format_version") == "1"
        time.sleep(0.25)
        with pytest.raises(ConfigError, match="takes too long"):
            database.value("format_version")
    assert database.value("format_version") == "1"


def test_the_earliest_of_several_ends_counts(database):
    with within(0.2), within(60), pytest.raises(ConfigError):
        database.rows(ENDLESS)
    with within(60):
        with within(0.1), pytest.raises(ConfigError):
            database.rows(ENDLESS)
        assert database.value("format_version") == "1"


def test_work_that_nobody_waits_for_any_more_ends(database):
    gone = threading.Event()
    threading.Timer(0.2, gone.set).start()

    def ask():
        with within(60, gone.is_set), within(60), pytest.raises(ConfigError):
            database.rows(ENDLESS)

    assert seconds_of(ask) < 10


def test_nobody_waits_for_a_slow_question_of_somebody_else(database):
    gone = threading.Event()

    def ask():
        with within(60, gone.is_set), pytest.raises(ConfigError):
            database.rows(ENDLESS)

    threads = [threading.Thread(target=ask) for _ in range(READERS - 1)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.1)
        assert all(thread.is_alive() for thread in threads)
        for _ in range(3):
            assert database.value("format_version") == "1"
            database.version()
    finally:
        gone.set()
        for thread in threads:
            thread.join()


def test_more_threads_than_connections_take_turns(database):
    seen = []
    threads = [
        threading.Thread(target=lambda: seen.append(database.value("format_version"))) for _ in range(4 * READERS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["1"] * len(threads)


def test_closing_waits_for_nobody_and_leaves_nothing_open(database):
    gone = threading.Event()

    def ask():
        with within(60, gone.is_set), pytest.raises(ConfigError):
            database.rows(ENDLESS)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.1)
    assert seconds_of(database.close) < 5
    gone.set()
    thread.join()
    with pytest.raises(sqlite3.ProgrammingError):
        database._connection.execute("SELECT 1")
    assert database._idle.empty()
