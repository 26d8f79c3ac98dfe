"""Examples in public docstrings run on their own, in an empty session, as a reader would paste them."""

import doctest
import inspect

import pytest
import torch

import disentangled_mil

OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def is_plain_record(public: object) -> bool:
    """A NamedTuple, whose fields are explained where it is returned."""
    return inspect.isclass(public) and issubclass(public, tuple)


@pytest.mark.parametrize("name", disentangled_mil.__all__)
def test_examples_of_public_names_run_in_an_empty_session(name: str) -> None:
    public = getattr(disentangled_mil, name)
    found = doctest.DocTestFinder(exclude_empty=True).find(public, name, module=False, globs={})
    examples = [test for test in found if test.examples]
    own = [test for test in examples if test.name == name]
    assert own or is_plain_record(public), f"{name} has no example"
    runner = doctest.DocTestRunner(optionflags=OPTIONS, verbose=False)
    report: list[str] = []
    for test in examples:
        test.globs.clear()
        torch.manual_seed(0)
        runner.run(test, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)
