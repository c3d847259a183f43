"""Messages that no owner of this version sends: the worker tells, and obeys what follows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi.errors import RemoteError
from fedmpi.workers.crew import Crew
from fedmpi.workers.in_process import in_process_crew
from fedmpi.workers.operate import (
    Call,
    Clear,
    Done,
    Fetch,
    Fetched,
    Found,
    Give,
    Limit,
    Look,
    MakePrivate,
    Operate,
    Put,
    Take,
    Wait,
)
from fedmpi.workers.program import Program, Step
from fedmpi.workers.signature import Signature

X, Y = {"tensor": 0}, {"tensor": 1}
SECRET = torch.tensor([3.0, 1.0, 2.0])


def failure(crew: Crew, rank: int = 1) -> str:
    """What the worker has to say at the next wait; empty if all went well."""
    crew.tell(rank, Wait())
    try:
        crew.hear([rank], Done)
    except RemoteError as error:
        return str(error)
    return ""


def value(crew: Crew, key: int, rank: int = 1) -> torch.Tensor:
    crew.tell(rank, Fetch(key))
    [(_, [tensor])] = crew.hear_tensors([rank], Fetched)
    return tensor


def call(
    crew: Crew,
    operator: str,
    arguments: list[Any],
    tensors: list[int],
    results: list[int],
    **rest: Any,
) -> str:
    """Tells a signature and calls it once; the worker's failure."""
    signature = Signature(operator, arguments, rest.get("keywords", {}), rest.get("nbytes", 0))
    calls = [Call(1, 0, tensors, rest.get("numbers", []), results, rest.get("seed", 0))]
    crew.tell(1, Operate([(0, signature)], calls, []))
    return failure(crew)


@contextmanager
def two_workers() -> Iterator[Crew]:
    """Worker 1 has object 1, three ones, and object 2, three private numbers."""
    with in_process_crew(2) as crew:
        fill(crew)
        yield crew


def fill(crew: Crew) -> None:
    crew.tell(1, Clear())
    with suppress(RemoteError):
        crew.hear([1], Done)
    crew.tell(1, Put(1, [], "", False), [torch.ones(3)])
    crew.tell(1, Put(2, [], "", True), [SECRET])
    assert failure(crew) == ""


def assert_obeys(crew: Crew) -> None:
    """A correct call is done, with its result."""
    assert call(crew, "add.Tensor", [X, X], [1], [2**40]) == ""
    assert torch.equal(value(crew, 2**40), value(crew, 1) * 2)
    crew.tell(1, Operate([], [], [2**40]))


def nested(depth: int) -> Any:
    deep: Any = X
    for _ in range(depth):
        deep = [deep]
    return deep


HUGE = 2**62
HOSTILE: list[tuple[str, list[Any], list[int], list[int], str]] = [
    # operators that are not on the list, or do not exist
    ("os.system", ["true"], [], [5], "'os.system' is not on the list"),
    ("from_file", ["/etc/passwd"], [], [5], "'from_file' is not on the list"),
    ("aten::from_file", ["/etc/passwd"], [], [5], "is not on the list"),
    ("aten.from_file", ["/etc/passwd"], [], [5], "is not on the list"),
    ("resize_", [X, [10]], [1], [5], "'resize_' is not on the list"),
    ("set_", [X], [1], [5], "'set_' is not on the list"),
    ("__class__", [X], [1], [5], "is not on the list"),
    ("", [X], [1], [5], "is not on the list"),
    ("add.Nothing", [X, X], [1], [5], "no overload 'Nothing'"),
    ("add.__class__", [X, X], [1], [5], "no overload '__class__'"),
    ("add.Tensor.Tensor", [X, X], [1], [5], "no overload 'Tensor.Tensor'"),
    # arguments of a wrong kind
    ("add.Tensor", ["x", "y"], [], [5], "RuntimeError"),
    ("add.Tensor", [X], [1], [5], "RuntimeError"),
    ("add.Tensor", [X, X, X, X, X], [1], [5], "RuntimeError"),
    ("relu", [{}], [1], [5], "an argument {}"),
    ("relu", [{"tensor": 0, "number": 0}], [1], [5], "an argument"),
    ("relu", [{"code": "import os"}], [1], [5], "an argument"),
    ("relu", [nested(5)], [1], [5], "more than 4 deep"),
    ("relu", [nested(300)], [1], [5], ""),
    ("sum.dim_IntList", [X, [2**63]], [1], [5], "Error"),
    ("new_zeros", [X, [HUGE]], [1], [5], "Error"),
    ("zeros", [[HUGE, HUGE]], [], [5], "Error"),
    ("zeros", [[-1]], [], [5], "Error"),
    ("relu", [{"dtype": "int8"}], [1], [5], "RuntimeError"),
    ("_to_copy", [X, {"dtype": "qint8"}], [1], [5], "an argument"),
    ("_to_copy", [X, {"dtype": ["int8"]}], [1], [5], "an argument"),
    ("mul.Scalar", [X, {"complex": [1, 2, 3]}], [1], [5], "an argument"),
    ("mul.Scalar", [X, {"complex": ["1", 2]}], [1], [5], "an argument"),
    ("mul.Scalar", [X, {"complex": ["x"]}], [1], [5], "an argument"),
    ("mul.Tensor", [X, {"scalar": []}], [1], [5], "an argument"),
    ("mul.Tensor", [X, {"scalar": [0, "string"]}], [1], [5], "an argument"),
    ("mul.Tensor", [X, {"scalar": ["a", "int8"]}], [1], [5], "an argument"),
    # slots out of range, or that are none
    *(
        ("relu", [{kind: slot}], [1], [5], "slots count from 0")
        for kind in ("tensor", "number")
        for slot in (-1, -(2**63), "0", None, 0.0, True, [0], {"tensor": 0})
    ),
    ("relu", [{"tensor": 1}], [1], [5], "IndexError"),
    ("relu", [{"tensor": 2**64 - 1}], [1], [5], "Error"),
    ("relu", [X], [], [5], "IndexError"),
    ("mul.Scalar", [X, {"number": 0}], [1], [5], "IndexError"),
    # ids that stand for nothing, are taken, or are none
    ("relu", [X], [99], [5], "rank 1 holds no object 99"),
    ("relu", [X], [0], [5], "rank 1 holds no object 0"),
    ("relu", [X], [-1], [5], "rank 1 holds no object -1"),
    ("relu", [X], [1], [1], "rank 1 has an object 1 already"),
    ("relu", [X], [1], [-1], "ids count from 1"),
    ("relu", [X], [1], [-(2**63)], "ids count from 1"),
    # results that do not fit
    ("relu", [X], [1], [], "relu has 1 results, not 0"),
    ("relu", [X], [1], [5, 6], "relu has 1 results, not 2"),
    ("topk", [X, 2], [1], [5], "topk has 2 results, not 1"),
    ("topk", [X, 2], [1], [5, 5], "rank 1 has an object 5 already"),
    # results that could never be fetched
    ("view", [X, [3] + [1] * 64], [1], [5], "65 dimensions: it could not be sent"),
]  # fmt: skip


def test_hostile_calls_are_told_and_correct_ones_obeyed() -> None:
    with two_workers() as crew:
        for operator, arguments, tensors, results, sentence in HOSTILE:
            found = call(crew, operator, arguments, tensors, results)
            assert found, (operator, arguments)
            assert sentence in found, (operator, arguments, found)
            assert_obeys(crew)
            crew.tell(1, Operate([], [], [5, 6]))


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"device": "meta"}, "it could not be sent"),
        ({"device": "cuda:99"}, "Error"),
        ({"generator": 1}, "Error"),
        ({"layout": 1}, ""),
        ({"dtype": 12}, ""),
        ({"size": [2]}, "Error"),
        ({"": None}, "Error"),
        ({"self": X}, "Error"),
    ],
    ids=str,
)
def test_hostile_keywords_are_told(keywords: dict[str, Any], sentence: str) -> None:
    with two_workers() as crew:
        found = call(crew, "zeros", [[3]], [1], [5], keywords=keywords)
        assert found
        assert sentence in found
        assert_obeys(crew)


def test_a_call_of_a_signature_that_was_never_told_is_refused() -> None:
    with two_workers() as crew:
        for number in (7, -1, 2**63):
            crew.tell(1, Operate([], [Call(1, number, [1], [], [5])], []))
            assert f"a call of an unknown signature {number}" in failure(crew)
        assert_obeys(crew)


def test_a_signature_that_was_refused_fails_each_of_its_calls() -> None:
    with two_workers() as crew:
        crew.tell(1, Operate([(3, Signature("system", [], {}, 0))], [], []))
        assert failure(crew) == ""  # nobody has called it yet
        for key in (5, 6):
            crew.tell(1, Operate([], [Call(1, 3, [1], [], [key])], []))
            assert "'system' is not on the list" in failure(crew)
        # It spoils nothing else of its frame.
        relu = Signature("relu", [X], {}, 0)
        signatures = [(3, Signature("relu", [nested(300)], {}, 0)), (4, relu)]
        crew.tell(1, Operate(signatures, [Call(1, 4, [1], [], [7])], [1]))
        assert torch.equal(value(crew, 7), torch.ones(3))
        assert "no object 1" in call(crew, "relu", [X], [1], [8])


def test_other_commands_with_wrong_ids_are_told() -> None:
    with two_workers() as crew:
        for command, tensors, sentence in (
            (Put(1, [], "", False), [torch.ones(1)], "has an object 1 already"),
            (Put(0, [], "", False), [torch.ones(1)], "ids count from 1"),
            (Put(5, [], "", False), [], "ValueError"),
            (Put(5, [], "", False), [torch.ones(1)] * 2, "ValueError"),
            (MakePrivate(99), [], "holds no object 99"),
        ):
            crew.tell(1, command, tensors)
            assert sentence in failure(crew)
        crew.tell(1, Fetch(-1))
        with pytest.raises(RemoteError, match="holds no object -1"):
            crew.hear([1], Fetched)
        crew.tell(1, Operate([], [], [0, -1, 99, 2**63]))  # nothing to forget
        assert failure(crew) == ""
        assert_obeys(crew)


def test_what_cannot_be_given_is_refused_in_words_to_the_worker_that_waits() -> None:
    with two_workers() as crew:
        crew.tell(1, Give(99, 2, False))
        crew.tell(2, Take(7, 1))
        assert "rank 2 holds no object 7: it was deleted" in failure(crew, 2)
        crew.tell(1, Give(1, 2, True))
        crew.tell(2, Limit(0))
        crew.tell(2, Take(8, 1))
        assert "beyond its limit of 0" in failure(crew, 2)
        crew.tell(2, Fetch(8))
        with pytest.raises(RemoteError, match=r"no object 8: .* beyond its limit"):
            crew.hear([2], Fetched)
        assert failure(crew) == ""


@pytest.mark.parametrize("said", [0, -(2**62), 4])
def test_a_result_that_is_larger_than_was_said_is_not_kept(said: int) -> None:
    with two_workers() as crew:
        crew.tell(1, Limit(1000))
        assert "beyond its limit of 1,000" in call(crew, "zeros", [[1000]], [], [5], nbytes=said)
        zeros = Signature("zeros", [[1000]], {}, said)
        program = Program([zeros], [Step(0, [], [], [0])], 0, [0], 1, said)
        crew.tell(1, Operate([(1, program)], [Call(1, 1, [], [], [6])], []))
        assert "beyond its limit of 1,000" in failure(crew)
        crew.tell(1, Look([]))
        [found] = crew.hear([1], Found)
        assert {one.key for one in found.objects} == {1, 2}
        assert found.nbytes == 24
        crew.tell(1, Fetch(5))
        with pytest.raises(RemoteError, match=r"no object 5: zeros failed .* beyond its limit"):
            crew.hear([1], Fetched)
        assert_obeys(crew)


def private(crew: Crew) -> set[int]:
    crew.tell(1, Look([]))
    [found] = crew.hear([1], Found)
    return {one.key for one in found.objects if one.private}


def test_a_private_tensor_does_not_get_out_through_a_call_that_fails() -> None:
    with two_workers() as crew:
        # The second result meets an id that is taken, after the first was stored.
        assert "already" in call(crew, "sort", [X], [2], [5, 1])
        assert private(crew) == {2, 5}
        # The result count does not fit, after the operator has written.
        assert "not 2" in call(crew, "copy_", [X, Y], [1, 2], [0, 0])
        assert private(crew) == {1, 2, 5}
        crew.tell(1, Put(6, [], "", False), [torch.zeros(3)])
        assert call(crew, "add.out", [X, X], [2, 6], [0], keywords={"out": Y}) == ""
        assert private(crew) == {1, 2, 5, 6}


INDEX = Signature("index.Tensor", [X, [Y]], {}, 0)
FAR = torch.tensor([92713])
TELLING: dict[str, tuple[Signature | Program, list[torch.Tensor], str]] = {
    "index": (INDEX, [torch.ones(3), FAR], "92713"),
    "label": (
        Signature("nll_loss_forward", [X, Y, None, 1, -100], {}, 0),
        [torch.ones(1, 3), FAR],
        "92713",
    ),
    "matrix": (
        Signature("cholesky", [X], {}, 0),
        [torch.diag(torch.tensor([1.0, 2.0, -3.0]))],
        "order 3",
    ),
    "plan": (
        Program([INDEX], [Step(0, [0, 1], [], [2])], 2, [2], 3, 0),
        [torch.ones(3), FAR],
        "92713",
    ),
}
"""What fails by the values of its last operand, and what PyTorch says of them."""


@pytest.mark.parametrize("name", TELLING)
def test_a_failure_on_what_is_kept_does_not_tell_why(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    callee, operands, word = TELLING[name]
    results = [5, 6] if name == "label" else [5]
    keys = [8 + k for k in range(len(operands))]

    def told(private: bool) -> str:
        """All that anybody gets to know: the owner, another worker, who reads the logs."""
        caplog.clear()
        said = []
        with two_workers() as crew:
            for key, operand in zip(keys, operands, strict=True):
                crew.tell(1, Put(key, [], "", private and key == keys[-1]), [operand])
            crew.tell(1, Operate([(0, callee)], [Call(1, 0, keys, [], results)], []))
            for ask, reply in ((Wait(), Done), (Fetch(5), Fetched)):
                crew.tell(1, ask)
                with pytest.raises(RemoteError) as caught:
                    crew.hear([1], reply)
                said += [str(caught.value), caught.value.remote_traceback]
            crew.tell(1, Give(5, 2, True))
            crew.tell(2, Take(7, 1))
            said += [failure(crew, 2), caplog.text]
            assert_obeys(crew)
        return "\n".join(said)

    assert word in told(private=False)
    withheld = told(private=True)
    shapes = ", ".join(str(list(operand.shape)) for operand in operands)
    operator = callee.operator if isinstance(callee, Signature) else "a plan"
    assert f"{operator} failed on rank 1, on tensors of {shapes}: why is not told" in withheld
    assert word not in withheld
    assert "Traceback" not in withheld


OPERATORS = """
    add.Tensor mul.Tensor mul.Scalar relu relu_ cat stack topk sort sum.dim_IntList zeros full
    ones_like empty view as_strided select.int slice.Tensor index.Tensor where.self add_.Tensor
    copy_ add.out uniform_ bernoulli native_dropout randint randn _foreach_add.List max.dim
    _foreach_add_.Scalar native_batch_norm std.correction _to_copy expand unbind.int
    os.system from_file resize_ aten::from_file add.Nothing add. .add set_ __class__
"""


def test_a_plan_does_not_reveal_private_tensors_by_writing_them() -> None:
    select, copy = Signature("select.int", [X, 0, 0], {}, 0), Signature("copy_", [X, Y], {}, 0)
    straight = Program([copy], [Step(0, [0, 1], [], [-1])], 2, [0], 2, 0)
    through_views = Program(
        [select, copy],
        [Step(0, [0], [], [2]), Step(0, [1], [], [3]), Step(1, [2, 3], [], [-1])],
        *(2, [2], 4, 0),
    )
    for program in (straight, through_views):
        with two_workers() as crew:
            crew.tell(1, Operate([(0, program)], [Call(1, 0, [1, 2], [], [0])], []))
            assert failure(crew) == ""
            assert private(crew) == {1, 2}


names = st.sampled_from(OPERATORS.split()) | st.text(max_size=10)
integers = st.integers(-3, 5) | st.sampled_from([HUGE, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)])
floats = st.sampled_from([0.5, -1.0, 0.0, float("nan"), float("inf"), 1e308])
slots = st.builds(dict, st.tuples(st.tuples(
    st.sampled_from(["tensor", "tensor", "tensor", "number", "scalar", "dtype", "complex", "x"]),
    st.integers(-1, 2) | st.sampled_from(["int8", [0, "float32"], [1, 2], None, 2**63]),
)))  # fmt: skip
argument = st.recursive(
    slots | integers | floats | st.none() | st.booleans() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)
ids = st.integers(-1, 9) | st.sampled_from([2**63, 2**64 - 1, -(2**63)])
keywords = st.dictionaries(
    st.sampled_from(["dim", "alpha", "dtype", "out", "device", "generator", "self", "layout"])
    | st.text(max_size=3),
    argument,
    max_size=2,
)
signature = st.builds(
    Signature, names, st.lists(argument, max_size=4), keywords, st.integers(-5, 5) | st.just(HUGE)
)
registers = st.integers(-2, 6)
step = st.builds(
    Step,
    st.integers(-1, 2),
    st.lists(registers, max_size=3),
    st.lists(floats, max_size=2),
    st.lists(registers, max_size=2),
)
program = st.builds(
    Program,
    st.lists(signature, max_size=2),
    st.lists(step, max_size=3),
    st.integers(-1, 3) | st.just(HUGE),
    st.lists(registers, max_size=2),
    registers | st.just(HUGE),
    st.integers(-5, 5) | st.just(HUGE),
    st.integers(-2, 3),
)
calls = st.builds(
    Call,
    st.integers(0, 2**63),
    st.integers(-1, 3),
    st.lists(ids, max_size=3),
    st.lists(integers | floats, max_size=2),
    st.lists(ids, max_size=3),
    integers,
)
operates = st.builds(
    Operate,
    st.lists(st.tuples(st.integers(0, 3), signature | program), max_size=3),
    st.lists(calls, max_size=4),
    st.lists(ids, max_size=2),
)


def test_whatever_is_called_the_worker_answers_and_goes_on() -> None:
    with two_workers() as crew:

        @settings(max_examples=300)
        @given(operates)
        def obeyed(command: Operate) -> None:
            crew.tell(1, command)
            failure(crew)
            fill(crew)
            assert_obeys(crew)

        obeyed()
