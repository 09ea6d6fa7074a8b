"""Reading files of other packages: only arrays come out of a pickle, whatever is in it."""

import io
import os
import pickle
import subprocess

import numpy as np
import pytest

from softdimo.errors import DataError
from softdimo_plugins.data.packages import ArrayUnpickler, check_sha256, read_csv, unpickle_array


class Attack:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [3, 4])  # others need more globals than three
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_arrays_come_back(protocol, dtype):
    array = np.arange(24, dtype=dtype).reshape(2, 3, 4)
    assert np.array_equal(unpickle_array(pickle.dumps(array, protocol), "x"), array)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_refused_and_never_called(tmp_path, protocol):
    trace = tmp_path / "trace"
    data = pickle.dumps(Attack(os.system, f"touch {trace}"), protocol)
    pickle.loads(data)
    assert trace.exists()  # the attack is real
    trace.unlink()
    with pytest.raises(DataError, match=r"system is not admitted"):
        unpickle_array(data, "file.gz")
    assert not trace.exists()


@pytest.mark.parametrize(
    "attack",
    [
        Attack(eval, "1"),
        Attack(exec, "pass"),
        Attack(getattr, 1, "real"),
        Attack(subprocess.call, ["true"]),
        Attack(np.fromfile, "x"),
        Attack(open, "x"),
    ],
)
def test_other_globals_are_refused(attack):
    with pytest.raises(pickle.UnpicklingError, match="is not admitted"):
        ArrayUnpickler(io.BytesIO(pickle.dumps(attack))).load()


def test_an_attack_inside_an_object_array_is_refused(tmp_path):
    trace = tmp_path / "trace"
    array = np.array([Attack(os.system, f"touch {trace}")], dtype=object)
    with pytest.raises(DataError, match="not admitted"):
        unpickle_array(pickle.dumps(array), "file.gz")
    assert not trace.exists()


@pytest.mark.parametrize("content", [[1, 2], np.array([None]), np.array(["text"]), {"a": 1}])
def test_only_arrays_of_numbers_pass(content):
    with pytest.raises(DataError, match="expected an array of numbers"):
        unpickle_array(pickle.dumps(content), "file.gz")


@pytest.mark.parametrize("data", [b"", b"\x80\x04", b"no pickle at all"])
def test_damaged_pickles_are_data_errors(data):
    with pytest.raises(DataError, match=r"file\.gz is not a plain pickled array"):
        unpickle_array(data, "file.gz")


def test_sha256():
    check_sha256(b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "nothing", "")
    with pytest.raises(DataError, match=r"file has sha256 .* expected abc; reinstall it"):
        check_sha256(b"", "abc", "file", "reinstall it")


def test_csv():
    assert read_csv(b"1,2,3\n4,5,6\n", 3, "t").tolist() == [[1, 2, 3], [4, 5, 6]]
    with pytest.raises(DataError, match="t has 3 columns, expected 2"):
        read_csv(b"1,2,3\n", 2, "t")
    with pytest.raises(DataError, match="t is not a table of numbers"):
        read_csv(b"1,2\n3,x\n", 2, "t")
