"""Which pictures a command line names."""

import io

import pytest

from actfer_jax.errors import UserError
from actfer_jax.evaluation.pictures import find_pictures
from actfer_jax.outputs import MARKER


def find(*arguments: object, stdin: bytes = b"") -> list[str]:
    return find_pictures([str(argument) for argument in arguments], io.BytesIO(stdin))


def test_folders_lists_and_standard_input(tmp_path, monkeypatch):
    names = ["a.JPG", "b/a.jpg", "b/c/ä\nb.webp", "b/c/=1.heic"]
    others = ["b/notes.txt", ".trash/a.jpg", "b/._a.jpg", "results/images/a.png", f"results/{MARKER}"]
    for name in [*names, *others]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert sorted(find(tmp_path)) == sorted(str(tmp_path / name) for name in names)
    assert find("b", "a.JPG") == ["b/a.jpg", "b/c/=1.heic", "b/c/ä\nb.webp", "a.JPG"]
    assert find("-", stdin=b"a.JPG\r\n\n b.png\nb/c\n") == ["a.JPG", " b.png", "b/c/=1.heic", "b/c/ä\nb.webp"]
    assert find("-", stdin="b/c/ä\nb.webp\0a.JPG\0".encode()) == ["b/c/ä\nb.webp", "a.JPG"]
    (tmp_path / "list.txt").write_text("gone.png\na.JPG\n")
    assert find("@list.txt", "a.JPG") == ["gone.png", "a.JPG", "a.JPG"]  # What is gone is found out when it is read.


def test_what_names_no_picture_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("a.png\nhttp://x/y.png\n")
    for arguments, words in (
        (["empty"], "empty and the folders in it have no picture"),
        (["@gone.txt"], "the list gone.txt cannot be read"),
        (["@"], "the list after @ is empty"),
        (["@list.txt"], "list.txt, line 2: the name is 'http://x/y.png'"),
        (["-"], "no picture is named by -"),
        ([""], "the name of a picture is empty"),
    ):
        with pytest.raises(UserError, match=words):
            find(*arguments)
