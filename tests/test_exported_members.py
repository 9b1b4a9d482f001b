"""The facade is a sorted list of names, and each of them exists."""

import compress


def test_all_is_sorted_and_real():
    assert compress.__all__ == sorted(compress.__all__)
    for name in compress.__all__:
        assert getattr(compress, name) is not None


def test_unknown_name():
    try:
        compress.no_such_name  # noqa: B018
    except AttributeError as error:
        assert "no_such_name" in str(error)
    else:
        raise AssertionError("an unknown name was answered")
