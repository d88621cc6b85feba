import pytest

from dfpo_jax.training.config_argument import check_argument


def test_none_and_what_is_allowed_pass():
    check_argument("configs/a.py", None)
    check_argument("configs/a.py", None, "cpu")
    check_argument("configs/a.py", "cpu", "cpu", "gpu")


@pytest.mark.parametrize(
    ("allowed", "message"),
    [
        ((), "configs/a.py:fast: there is no such argument"),
        (("cpu",), "configs/a.py:fast: the argument must be cpu or absent"),
        (("cpu", "gpu"), "configs/a.py:fast: the argument must be cpu or gpu or absent"),
    ],
)
def test_another_argument_is_refused_with_those_that_are_allowed(allowed, message):
    with pytest.raises(ValueError) as error:
        check_argument("/somewhere/configs/a.py", "fast", *allowed)
    assert str(error.value) == message
