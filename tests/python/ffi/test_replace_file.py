"""Files that appear whole or not at all."""

import threading

import pytest

from kvctl._ffi.replace_file import replacing


def test_a_file_is_replaced_at_the_end(tmp_path):
    file = tmp_path / "file"
    file.write_text("old")
    with replacing(file) as unfinished:
        unfinished.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new" and list(tmp_path.iterdir()) == [file]


def test_what_is_raised_leaves_the_old_file(tmp_path):
    file = tmp_path / "file"
    file.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(file) as unfinished:
        unfinished.write_text("half of")
        raise KeyboardInterrupt
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_the_file_behind_a_link_is_replaced(tmp_path):
    file, link = tmp_path / "file", tmp_path / "link"
    link.symlink_to(file)
    with replacing(link) as unfinished:
        unfinished.write_text("new")
    assert link.is_symlink() and file.read_text() == "new"


def test_what_is_no_file_is_kept(tmp_path):
    with pytest.raises(ValueError, match="is no file that could be replaced"), replacing(tmp_path):
        pass
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "no" / "file"):
        pass


def test_writers_of_one_process_do_not_meet(tmp_path):
    """Each writes a file of its own: with one for all, a part of a file could appear."""
    file, wrong = tmp_path / "file", []

    def write(letter):
        for _ in range(100):
            with replacing(file) as unfinished, unfinished.open("w") as out:
                for _ in range(10):
                    out.write(letter * 1000)
                    out.flush()

    writers = [threading.Thread(target=write, args=(letter,)) for letter in "abc"]
    file.write_text("a" * 10_000)
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        text = file.read_text()
        if len(text) != 10_000 or len(set(text)) != 1:
            wrong.append(text[:10])
    assert not wrong and list(tmp_path.iterdir()) == [file]
