"""Results are written whole or not at all."""

import json
import math
import os
from pathlib import Path

import pytest

from minigrpo.files import check_writable, write_json, write_text

VALUE = {"λ": [1, 2.5, None, True], "nested": {"objective": "λ-GRPO"}}


def test_write_json_round_trip(tmp_path):
    path = write_json(tmp_path / "a" / "b" / "result.json", VALUE)
    assert path == tmp_path / "a" / "b" / "result.json"
    assert json.loads(path.read_text("utf-8")) == VALUE
    assert "λ-GRPO" in path.read_text("utf-8")  # for a reader, not escaped
    assert path.read_text("utf-8").endswith("}\n")
    assert write_json(str(path), 1) == path  # a string will do, and what stood there is replaced
    assert path.read_text("utf-8") == "1\n"
    assert os.listdir(path.parent) == ["result.json"]
    assert path.stat().st_mode & 0o777 == 0o644  # others may read it, unlike a temporary file


@pytest.mark.parametrize("value", [{"r": math.nan}, [math.inf], [-math.inf], {"a": {1}}, "\ud800"], ids=repr)
def test_a_failed_write_leaves_what_was_there(tmp_path, value):
    path = write_text(tmp_path / "result.json", "old")
    with pytest.raises((ValueError, TypeError)):  # a lone surrogate fails half-way, in the file
        write_json(path, value)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "new.json", value)
    assert os.listdir(tmp_path) == ["result.json"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_what_was_there(tmp_path, monkeypatch, error):
    path = write_text(tmp_path / "result.json", "old")

    def fail(temporary, target):
        assert Path(temporary).read_text() == "new"  # whole before it takes the name
        assert os.path.dirname(temporary) == str(tmp_path)  # on the same disk, so that renaming is atomic
        assert path.read_text() == "old"
        raise error

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(error):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


@pytest.mark.parametrize("write", [write_text, lambda path, text: check_writable(path)], ids=["write", "check"])
def test_what_cannot_be_written_is_named(tmp_path, write):
    file, folder = write_text(tmp_path / "file", "old"), tmp_path / "folder"
    folder.mkdir()
    for path, named in ((file / "x.json", file), (file / "deep" / "x.json", file), (folder, folder)):
        with pytest.raises(OSError) as error:
            write(path, "new")
        assert str(named) in str(error.value)
    assert file.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert os.listdir(folder) == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="everything is writable")
@pytest.mark.parametrize("write", [write_text, lambda path, text: check_writable(path)], ids=["write", "check"])
def test_a_read_only_folder_is_named(tmp_path, write):
    folder = tmp_path / "folder"
    folder.mkdir(0o500)
    with pytest.raises(PermissionError) as error:
        write(folder / "x.json", "new")
    assert str(folder) in str(error.value)


def test_check_writable_leaves_files_alone(tmp_path):
    check_writable(tmp_path / "a" / "b" / "result.json")
    assert os.listdir(tmp_path / "a" / "b") == []  # the folder is there, the file is not
    path = write_text(tmp_path / "result.json", "old")
    check_writable(str(path))
    assert path.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["a", "result.json"]


def test_a_link_is_followed_and_a_device_refused(tmp_path):
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    write_json(tmp_path / "link.json", [1])
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "real.json").read_text()) == [1]
    os.mkfifo(tmp_path / "pipe")
    for refuse in (check_writable, lambda path: write_json(path, [1])):
        with pytest.raises(OSError, match="pipe is no regular file: name another"):
            refuse(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
