"""The configuration: defaults, TOML and back, and every refusal in one sentence."""

from __future__ import annotations

import math
import tomllib
from dataclasses import FrozenInstanceError, asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmpi.config import (
    DEFAULTS,
    AggregationConfig,
    AttackConfig,
    CheckpointConfig,
    CommConfig,
    ComputeConfig,
    Config,
    DataConfig,
    DetectConfig,
    FederatedConfig,
    PrivacyConfig,
    Recipe,
    RobustConfig,
    SecureConfig,
    StrategyConfig,
    from_mapping,
    from_toml,
    nearest,
    to_toml,
)
from fedmpi.errors import UsageError
from tests.launch import ROOT

# ---- there and back ----


def test_the_defaults_come_back_from_toml(tmp_path: Path) -> None:
    (tmp_path / "all.toml").write_text(to_toml(Config()))
    assert from_toml(tmp_path / "all.toml") == Config()


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.toml").write_text("")
    assert from_toml(tmp_path / "empty.toml") == Config()


def test_what_a_table_leaves_out_keeps_its_default() -> None:
    found = from_mapping({"seed": 3, "federated": {"batch_size": "full"}}, "here")
    assert found == Config(seed=3, federated=FederatedConfig(batch_size="full"))


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\\\0"), max_size=20)
configs = st.builds(
    Config,
    name=words.filter(lambda word: word.isprintable() and word not in (".", "..")),
    out=words,
    seed=st.integers(0, 2**63 - 1),
    model=words.filter(bool),
    data=st.builds(
        DataConfig,
        source=words.filter(bool),
        clients=st.integers(1, 10_000_000),
        partition=st.sampled_from(["iid", "dirichlet", "pathological", "quantity"]),
        alpha=st.floats(0, 1e6, exclude_min=True),
        test_fraction=st.floats(0, 1, exclude_min=True, exclude_max=True),
        cache_mib=st.integers(0, 2**30 - 1),
        verify=st.booleans(),
    ),
    federated=st.builds(
        FederatedConfig,
        mode=st.sampled_from(["shards", "scatter", "cyclic"]),
        fraction=st.floats(0, 1, exclude_min=True),
        batch_size=st.just("full") | st.integers(1, 2**31 - 1),
        lr=st.floats(0, 1e6, exclude_min=True),
        target_accuracy=st.floats(0, 1),
    ),
    comm=st.builds(CommConfig, workers=st.just("auto") | st.integers(1, 65_536)),
    compute=st.builds(ComputeConfig, threads=st.integers(1, 1024)),
)


@given(configs)
def test_any_configuration_comes_back_from_toml(config: Config) -> None:
    assert from_mapping(tomllib.loads(to_toml(config)), "it") == config


def test_nothing_of_the_tree_can_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Config().federated.rounds = 3  # type: ignore[misc]


def test_every_option_is_explained() -> None:
    """A docstring below the field is what --help shows."""
    files = (Path(__file__).parent.parent / "fedmpi" / "config").glob("*.py")
    source = [line for file in files for line in file.read_text().splitlines()]
    for cls in (Recipe, *BRANCHES, *PREFIXED):
        for name in cls.__annotations__:
            if is_dataclass(get_type_hints(cls)[name]):
                continue
            here = [n for n, line in enumerate(source) if line.startswith(f"    {name}: ")]
            assert any(source[n + 1].lstrip().startswith('"""') for n in here), name


BRANCHES = (Config, DataConfig, FederatedConfig, SecureConfig, CommConfig, ComputeConfig)
"""Whose options stand alone on the command line: --rounds."""
PREFIXED = {
    StrategyConfig: "strategy.",
    AggregationConfig: "secure.",
    PrivacyConfig: "privacy.",
    RobustConfig: "robust.",
    DetectConfig: "detect.",
    AttackConfig: "attack.",
    CheckpointConfig: "checkpoint.",
}
"""Whose options have the branch's name before them: --privacy.epsilon."""


def is_branch(cls: type, name: str) -> bool:
    return is_dataclass(get_type_hints(cls)[name])


def test_no_two_options_share_a_name() -> None:
    """On the command line --rounds is enough: no option needs the name of its branch."""
    names = [f.name for cls in BRANCHES for f in fields(cls) if not is_branch(cls, f.name)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.toml")), ids=lambda path: path.stem)
def test_the_example_jobs_are_configurations(path: Path) -> None:
    assert from_toml(path) != Config()


# ---- values out of range ----

NAN, INF = float("nan"), float("inf")
REFUSED: list[tuple[type, str, list[Any]]] = [
    (Config, "name", ["a/b", "a\\b", "..", ".", "a\0b", "a\x1b[2J"]),
    (Config, "seed", [-1, 2**63]),
    (Config, "model", [""]),
    (Recipe, "source", [""]),
    (Recipe, "clients", [0, -1, 10_000_001]),
    (Recipe, "partition", ["id", ""]),
    (Recipe, "alpha", [0.0, -1.0, NAN, INF, 2e6]),
    (Recipe, "classes_per_client", [0, 1001]),
    (Recipe, "test_fraction", [0.0, 1.0, -0.1, NAN]),
    (Recipe, "normalise", ["pixels"]),
    (Recipe, "partition_seed", [-1, 2**63]),
    (DataConfig, "clients", [0]),
    (DataConfig, "cache_mib", [-1, 2**30]),
    (FederatedConfig, "mode", ["shard"]),
    (FederatedConfig, "rounds", [0, -5, 10_000_001]),
    (FederatedConfig, "fraction", [0.0, 1.01, -1.0, NAN]),
    (FederatedConfig, "sampling", ["uniform"]),
    (FederatedConfig, "epochs", [0, 100_001]),
    (FederatedConfig, "batch_size", [0, -1, 2**31, "all"]),
    (FederatedConfig, "lr", [0.0, -0.1, NAN, INF, 2e6]),
    (FederatedConfig, "lr_decay", [0.0, 1.1, NAN]),
    (FederatedConfig, "momentum", [-0.1, 1.0, NAN]),
    (FederatedConfig, "weight_decay", [-1.0, 1e7, NAN]),
    (FederatedConfig, "eval_every", [0, 10_000_001]),
    (FederatedConfig, "target_accuracy", [-0.1, 1.1, NAN]),
    (FederatedConfig, "on_bad_update", ["ignore"]),
    (FederatedConfig, "on_lost_worker", ["ignore"]),
    (FederatedConfig, "root_rows", [0, -1]),
    (FederatedConfig, "dropout", [-0.1, 1.0, NAN]),
    (SecureConfig, "bits", [7, 25]),
    (SecureConfig, "loss", ["crossentropy"]),
    (SecureConfig, "activation", ["gelu"]),
    (SecureConfig, "pooling", ["avg"]),
    (SecureConfig, "learns", ["nothing"]),
    (SecureConfig, "parties", [[0, 1], [1], [2, 2], [-1, 1]]),
    (CommConfig, "transport", ["tcp"]),
    (CommConfig, "workers", [0, -1, 65_537, "many"]),
    (CommConfig, "topology", ["ring"]),
    (CommConfig, "balance", ["maybe"]),
    (CommConfig, "hierarchy_above", [-1, 65_537]),
    (CommConfig, "chunk_kib", [0, 2**20 + 1]),
    (CommConfig, "silence_seconds", [0.5, -1, 2e6, math.nan, "never"]),
    (ComputeConfig, "device", ["gpu"]),
    (ComputeConfig, "threads", [0, 1025]),
    (ComputeConfig, "stack", [0, -1, 1025]),
    (StrategyConfig, "kind", ["", "fedAdam", "mine"]),
    (StrategyConfig, "server_lr", [0.0, -1.0, NAN, INF, "fast"]),
    (StrategyConfig, "momentum", [-0.1, 1.0, NAN]),
    (StrategyConfig, "beta1", [-0.1, 1.0, NAN]),
    (StrategyConfig, "beta2", [-0.1, 1.0, NAN]),
    (StrategyConfig, "tau", [0.0, -1.0, NAN, INF]),
    (StrategyConfig, "mu", [-1.0, NAN, INF]),
    (AggregationConfig, "kind", ["share"]),
    (AggregationConfig, "threshold", [0.0, 0.5, 1.01, NAN]),
    (AggregationConfig, "neighbours", [-2, 3, 1_000_002]),
    (AggregationConfig, "key_holders", [[], [0], [0, 1], [2, 2], [-1]]),
    (AggregationConfig, "adder", [-1, 1]),
    (AggregationConfig, "poly_modulus_degree", [1024, 2048, 8191, 32768]),
    (AggregationConfig, "scale_bits", [19, 51]),
    (PrivacyConfig, "kind", ["center"]),
    (PrivacyConfig, "clip", [0.0, -1.0, NAN, INF]),
    (PrivacyConfig, "adaptive", [-0.1, 1.0, NAN]),
    (PrivacyConfig, "noise_multiplier", [-1.0, NAN, INF]),
    (PrivacyConfig, "epsilon", [-1.0, NAN, INF]),
    (PrivacyConfig, "delta", [0.0, 1.0, NAN]),
    (PrivacyConfig, "mechanism", ["gaussian"]),
    (PrivacyConfig, "accountant", ["moments"]),
    (PrivacyConfig, "noise", ["os"]),
    (DetectConfig, "threshold", [0.0, -1.0, NAN, INF]),
    (RobustConfig, "kind", ["mean"]),
    (RobustConfig, "attackers", [-0.1, 0.5, 0.99, 1.5, NAN, INF]),
    (RobustConfig, "clip", [-1.0, NAN, INF, 1.0]),
    (RobustConfig, "iterations", [-1, 10_001, 5]),
    (CheckpointConfig, "every_rounds", [-1, 10_000_001]),
    (CheckpointConfig, "every_minutes", [-1.0, NAN, INF, 2e6]),
    (CheckpointConfig, "keep", [0, 1001]),
    (AttackConfig, "kind", ["flip"]),
    (AttackConfig, "clients", [0.0, -1.0, 1.5, 1e8, NAN, INF]),
    (AttackConfig, "start", [0, -1, 10_000_001]),
    (AttackConfig, "scale", [-1.0, 2e6, NAN]),
    (AttackConfig, "std", [-0.1, 2e6, NAN]),
    (AttackConfig, "noise", [-0.1, 2e6, NAN]),
    (AttackConfig, "z", [-0.1, 2e6, NAN]),
    (AttackConfig, "epsilon", [-0.1, 2e6, NAN]),
    (AttackConfig, "target", [-1, 2**31]),
    (AttackConfig, "trigger", [0, 2**31]),
    (AttackConfig, "trigger_value", [-2e6, 2e6, NAN]),
    (AttackConfig, "poisoned", [0.0, 1.1, NAN]),
]
CASES = [(cls, key, value) for cls, key, values in REFUSED for value in values]


@pytest.mark.parametrize(("cls", "key", "value"), CASES, ids=lambda v: getattr(v, "__name__", None))
def test_a_value_out_of_range_is_refused(cls: type, key: str, value: object) -> None:
    with pytest.raises(UsageError) as caught:
        cls(**{key: value})
    assert str(caught.value).startswith(f"{PREFIXED.get(cls, '')}{key} = {value!r}: expected ")
    assert caught.value.exit_status == 2


def test_every_option_with_a_range_is_tested_above() -> None:
    """Not tested: words of any kind and switches."""
    tested = {PREFIXED.get(cls, "") + key for cls, key, _ in REFUSED}
    free = {"out", "root", "download", "by", "path", "verify", "evaluate_clients"}
    free |= {"secure_transport", "key_file", "user_code"}
    free |= {"overlap_evaluation"}
    free |= {"optimizer", "clear", "detect.score", "detect.exclude", "detect.root_loss"}
    branches = [*BRANCHES, *PREFIXED]
    every = {
        PREFIXED.get(cls, "") + f.name
        for cls in branches
        for f in fields(cls)
        if not is_branch(cls, f.name)
    }
    assert tested | free == every


def test_a_key_file_for_messages_that_are_not_sealed() -> None:
    with pytest.raises(UsageError, match="key_file = 'k' without secure_transport: add --secure"):
        CommConfig(key_file="k")
    assert CommConfig(secure_transport=True, key_file="k").key_file == "k"


@pytest.mark.parametrize(
    "how",
    [
        {"model": "own:good"},
        {"federated": FederatedConfig(strategy=StrategyConfig("own:Mine"))},
    ],
)
def test_code_of_ones_own_can_be_forbidden(how: dict[str, Any]) -> None:
    assert Config(**how).user_code
    with pytest.raises(UsageError, match="is code to import, which --no-user-code forbids"):
        Config(**how, user_code=False)


def test_options_that_contradict() -> None:
    with pytest.raises(UsageError, match="by = '': expected the column that names"):
        Recipe(partition="natural")
    with pytest.raises(UsageError, match="path = 'x' names prepared shards, but mode = 'scatter'"):
        Config(data=DataConfig(path="x"), federated=FederatedConfig(mode="scatter"))
    with pytest.raises(UsageError, match=r"secure\.bits = 20 with mode = 'shards': only"):
        Config(secure=SecureConfig(bits=20))
    with pytest.raises(UsageError, match=r"fraction = 0\.3 with mode = 'encrypted', in which all"):
        Config(federated=FederatedConfig(mode="encrypted", fraction=0.3))
    with pytest.raises(UsageError, match="evaluate_clients with mode = 'encrypted'"):
        Config(federated=FederatedConfig(mode="encrypted", evaluate_clients=True))
    with pytest.raises(UsageError, match=r"secure\.adder = 2 with secure\.kind = 'none'"):
        Config(federated=FederatedConfig(secure=AggregationConfig(adder=2)))
    with pytest.raises(UsageError, match=r"detect\.score with secure\.kind = 'ckks': it has"):
        Config(
            federated=FederatedConfig(
                secure=AggregationConfig(kind="ckks"), detect=DetectConfig(score=True)
            )
        )
    with pytest.raises(UsageError, match=r"checkpoint\.keep = 5 with mode = 'encrypted', whose"):
        Config(federated=FederatedConfig(mode="encrypted"), checkpoint=CheckpointConfig(keep=5))
    with pytest.raises(UsageError, match="device = 'cuda' with mode = 'encrypted'"):
        Config(federated=FederatedConfig(mode="encrypted"), compute=ComputeConfig(device="cuda"))


def test_what_cannot_overlap() -> None:
    overlapped = FederatedConfig(overlap_evaluation=True)
    for option, said in (
        ({"mode": "encrypted"}, "overlap_evaluation with mode = 'encrypted', whose owner takes"),
        ({"target_accuracy": 0.9}, r"overlap_evaluation with target_accuracy = 0\.9: a round's"),
        ({"evaluate_clients": True}, "overlap_evaluation with evaluate_clients: the workers"),
    ):
        with pytest.raises(UsageError, match=said):
            Config(federated=replace(overlapped, **option))


def test_what_does_not_go_with_secure_aggregation() -> None:
    shares = AggregationConfig(kind="shares")
    with pytest.raises(
        UsageError, match=r"detect\.score with secure\.kind = 'shares': it has to look at"
    ):
        Config(federated=FederatedConfig(secure=shares, detect=DetectConfig(score=True)))
    for secure, name in (
        (AggregationConfig(threshold=0.8), r"threshold = 0\.8"),
        (AggregationConfig(neighbours=4), "neighbours = 4"),
    ):
        with pytest.raises(UsageError, match=f"secure.{name} with secure.kind = 'none', which de"):
            Config(federated=FederatedConfig(secure=secure))
    with pytest.raises(UsageError, match=r"federated\.secure\.kind with mode = 'cyclic', in which"):
        Config(federated=FederatedConfig(mode="cyclic", secure=shares))
    for mode in ("cyclic", "encrypted"):
        with pytest.raises(UsageError, match=rf"dropout = 0\.1 with mode = '{mode}', in which"):
            Config(federated=FederatedConfig(mode=mode, dropout=0.1))


def test_an_option_that_a_strategy_does_not_use_is_refused() -> None:
    with pytest.raises(UsageError, match=r"strategy\.mu = 0\.1 with strategy fedadam, which"):
        StrategyConfig(kind="fedadam", mu=0.1)
    with pytest.raises(UsageError, match=r"with strategy fedadagrad, .*server_lr, beta1, tau"):
        StrategyConfig(kind="fedadagrad", beta2=0.9)
    with pytest.raises(UsageError, match=r"momentum = 0\.9 with strategy fedavg, .* no options"):
        from_mapping({"federated": {"strategy": {"momentum": 0.9}}}, "job.toml")
    StrategyConfig(kind="mine:Own", mu=0.1, beta2=0.9)  # its class will say what it uses


def test_options_left_open_are_filled_in() -> None:
    chosen = StrategyConfig(kind="fedadam", tau=0.1)
    assert chosen.filled(DEFAULTS["fedadam"]) == StrategyConfig(
        kind="fedadam", server_lr=0.01, beta1=0.9, beta2=0.99, tau=0.1
    )
    with pytest.raises(UsageError, match=r"strategy\.mu = 'auto', but strategy fedadam has no"):
        chosen.number("mu")
    table = {"federated": {"strategy": {"kind": "fedavgm", "server_lr": 1}}}
    assert from_mapping(table, "it").federated.strategy.number("server_lr") == 1.0


def test_what_clients_send_beside_an_update_is_seen_to_or_refused() -> None:
    scaffold = StrategyConfig(kind="scaffold")
    with pytest.raises(UsageError, match=r"detect\.score with strategy\.kind = 'scaffold': the"):
        Config(federated=FederatedConfig(strategy=scaffold, detect=DetectConfig(score=True)))
    noisy = PrivacyConfig(kind="central", noise_multiplier=1.0)
    with pytest.raises(UsageError, match=r"privacy\.kind = 'central' with strategy\.kind = 'scaf"):
        Config(federated=FederatedConfig(strategy=scaffold, privacy=noisy))
    with pytest.raises(UsageError, match=r"federated\.strategy\.kind with mode = 'cyclic', in"):
        Config(federated=FederatedConfig(strategy=scaffold, mode="cyclic"))


def test_replacing_is_checked_too() -> None:
    with pytest.raises(UsageError, match="lr = -1"):
        replace(FederatedConfig(), lr=-1)


# ---- tables ----


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (
            {"federated": {"round": 3}},
            "unknown key federated.round: did you mean federated.rounds?",
        ),
        ({"rounds": 3}, "unknown key rounds: did you mean federated.rounds?"),
        ({"data": {"lr": 3}}, "unknown key data.lr: did you mean federated.lr?"),
        ({"sed": 3}, "unknown key sed: did you mean seed?"),
        ({"federatd": {}}, "unknown key federatd: did you mean federated?"),
        (
            {"comm": {"xyzzy": 1}},
            "unknown key comm.xyzzy; known here: transport, workers, topology",
        ),
        ({"a\x1b[2J": 1}, r"unknown key 'a\x1b[2J'; known here: name, out"),
        ({"federated": {"a\n": 1}}, r"unknown key federated.'a\n'; known here: mode"),
        ({"seed": "one"}, "seed: Expected `int`, got `str`"),
        ({"seed": 1.5}, "seed: Expected `int`, got `float`"),
        (
            {"federated": {"secure": {"key_holders": [1, 2.5]}}},
            "federated.secure.key_holders[1]: Expected `int`, got `float`",
        ),
        ({"federated": {"lr": "fast"}}, "federated.lr: Expected `float`, got `str`"),
        ({"federated": 3}, "federated: Expected `object`, got `int`"),
        ({"federated": {"mode": "shard"}}, "(did you mean 'shards'?)"),
        ({"federated": {"batch_size": "ful"}}, "(did you mean 'full'?)"),
        (
            {"comm": {"topology": "ring"}},
            "comm.topology: Invalid enum value 'ring'; choices: tree, star",
        ),
        ({"data": {"partition": ["iid"]}}, "data.partition: Expected `str`, got `array`"),
        ({"federated": {"lr": -1.0}}, "lr = -1.0: expected a number above 0"),
        ({"data": {"clients": 0}}, "clients = 0: expected 1 to 10,000,000 clients"),
        ({"data": {"verify": 1}}, "data.verify: Expected `bool`, got `int`"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_table_that_cannot_be(table: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        from_mapping(table, "job.toml")
    assert str(caught.value).startswith("job.toml: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(
                st.sampled_from(
                    ["federated", "data", "comm", "lr", "rounds", "batch_size", "mode", "x"]
                ),
                inner,
                max_size=3,
            )
        ),
        max_leaves=6,
    ).filter(lambda value: isinstance(value, dict))
)
def test_any_table_is_a_configuration_or_a_refusal(table: dict[str, Any]) -> None:
    try:
        assert isinstance(from_mapping(table, "it"), Config)
    except UsageError as refusal:
        assert str(refusal).startswith("it: ")  # noqa: PT017 - most tables are refused, not all


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"cannot read the configuration nowhere.toml: No such file"
    ):
        from_toml("nowhere.toml")
    (tmp_path / "broken.toml").write_text("seed = = 3")
    with pytest.raises(UsageError, match=r"broken\.toml is not TOML: .*line 1"):
        from_toml(tmp_path / "broken.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"binary\.toml is not TOML"):
        from_toml(tmp_path / "binary.toml")
    with pytest.raises(UsageError, match="cannot read the configuration"):
        from_toml(tmp_path)


@pytest.mark.parametrize(
    ("word", "expected"),
    [("shard", " (did you mean 'shards'?)"), ("SHARDS", ""), ("xyz", ""), ("", "")],
)
def test_nearest(word: str, expected: str) -> None:
    assert nearest(word, ("shards", "scatter", "cyclic")) == expected


def test_the_tree_is_plain_data() -> None:
    """What travels in a command and stands in run records: no surprises in `asdict`."""
    flat = asdict(Config())
    assert set(flat) == {
        "name", "out", "seed", "model", "user_code", "data", "federated", "secure", "attack",
        "comm", "compute", "checkpoint",
    }  # fmt: skip
