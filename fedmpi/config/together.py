"""Options that do not go together: each would be passed over in silence by the other.

One function for each branch of the tree that says with what it cannot be combined.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from fedmpi.config.attack import COLLUDING
from fedmpi.config.encrypted import SecureConfig
from fedmpi.config.federated import cohort_size
from fedmpi.config.robust import WEIGHTED
from fedmpi.errors import UsageError

if TYPE_CHECKING:
    from fedmpi.config.federated import FederatedConfig
    from fedmpi.config.tree import Config


def refuse_together(config: Config) -> None:
    """Refuses a tree whose branches do not go together.

    Raises:
        UsageError: names both options and the reason.
    """
    _own_code(config)
    _scattered(config)
    _encrypted(config)
    _overlapped(config)
    _without_averages(config)
    _examined(config)
    _root_set(config)
    _colluding(config)
    _secure(config)
    _private(config)
    _variates(config)


def _own_code(config: Config) -> None:
    for what, name in (("model", config.model), ("strategy.kind", config.federated.strategy.kind)):
        if ":" in name and not config.user_code:
            raise UsageError(
                f"{what} = {name!r} is code to import, which --no-user-code forbids: leave that "
                "out if you trust it"
            )


def _scattered(config: Config) -> None:
    if config.federated.mode == "scatter" and config.data.path:
        raise UsageError(
            f"path = {config.data.path!r} names prepared shards, but mode = 'scatter' splits a "
            "source at the start: leave one of the two out"
        )


def _encrypted(config: Config) -> None:
    federated, encrypted = config.federated, config.federated.mode == "encrypted"
    if not encrypted and config.secure != SecureConfig():
        name = _changed(config.secure)
        raise UsageError(
            f"secure.{name} = {getattr(config.secure, name)!r} with mode = {federated.mode!r}: "
            "only mode = 'encrypted' trains on shares"
        )
    if encrypted and federated.fraction not in (type(federated).fraction, 1.0):
        raise UsageError(
            f"fraction = {federated.fraction:g} with mode = 'encrypted', in which all rows "
            "train: leave it out"
        )
    if encrypted and federated.sampling != type(federated).sampling:
        raise UsageError(
            f"sampling = {federated.sampling!r} with mode = 'encrypted', in which all rows train: "
            "leave it out"
        )
    if encrypted and federated.evaluate_clients:
        raise UsageError(
            "evaluate_clients with mode = 'encrypted', in which nobody sees a client's rows: "
            "leave it out"
        )
    if encrypted and config.checkpoint != type(config.checkpoint)():
        name = _changed(config.checkpoint)
        raise UsageError(
            f"checkpoint.{name} = {getattr(config.checkpoint, name)!r} with mode = 'encrypted', "
            "whose model nobody holds before the end: leave it out"
        )
    if encrypted and config.compute.device == "cuda" and not config.secure.clear:
        raise UsageError("device = 'cuda' with mode = 'encrypted': shares are on CPUs; use cpu")


def _overlapped(config: Config) -> None:
    """What has to be known, or done by the workers, before the next round begins."""
    federated = config.federated
    if not federated.overlap_evaluation:
        return
    if federated.mode == "encrypted":
        raise UsageError(
            "overlap_evaluation with mode = 'encrypted', whose owner takes part in every step: "
            "leave it out"
        )
    if federated.target_accuracy:
        raise UsageError(
            f"overlap_evaluation with target_accuracy = {federated.target_accuracy:g}: a round's "
            "accuracy would be known when the next one has begun to change the model; leave one "
            "of the two out"
        )
    if federated.evaluate_clients:
        raise UsageError(
            "overlap_evaluation with evaluate_clients: the workers evaluate their clients "
            "themselves and cannot train meanwhile; leave one of the two out"
        )


def _private(config: Config) -> None:
    """Clipping and noise bound what one client adds to one sum, and nothing else."""
    federated, privacy = config.federated, config.federated.privacy
    kind = f"privacy.kind = {privacy.kind!r}"
    if privacy.kind == "none":
        if privacy != type(privacy)():
            name = _changed(privacy)
            raise UsageError(
                f"privacy.{name} = {getattr(privacy, name)!r} with {kind}: choose central, "
                "distributed or local"
            )
        return
    if not privacy.epsilon and not privacy.noise_multiplier:
        raise UsageError(
            f"{kind} with neither privacy.epsilon nor privacy.noise_multiplier: without one of "
            "them there is no noise"
        )
    if privacy.adaptive and privacy.kind != "central":
        raise UsageError(
            f"privacy.adaptive = {privacy.adaptive:g} with {kind}: only kind = 'central' "
            "follows a quantile of the norms; leave it out"
        )
    if privacy.mechanism != type(privacy).mechanism and privacy.kind != "distributed":
        raise UsageError(
            f"privacy.mechanism = {privacy.mechanism!r} with {kind}, whose noise is Gaussian: only "
            "kind = 'distributed' has a choice"
        )
    if privacy.kind == "local":
        if federated.evaluate_clients:
            raise UsageError(
                f"evaluate_clients with {kind}: what a client says of its own rows has no noise: "
                "leave it out"
            )
        return
    if privacy.kind == "distributed" and privacy.accountant == "pld":
        raise UsageError(
            f"privacy.accountant = 'pld' with {kind}: of the clients' discrete noise only Renyi "
            "divergences are known; use rdp"
        )
    if federated.strategy.kind in ("scaffold", "fednova"):
        raise UsageError(
            f"{kind} with strategy.kind = {federated.strategy.kind!r}, which uses more of the "
            "clients than the sum of their clipped updates: nothing bounds that; use another "
            "strategy"
        )
    looks = {"robust": federated.robust, "detect": federated.detect}
    for name, branch in looks.items():
        if branch != type(branch)():
            raise UsageError(
                f"{kind} with {name}.{_changed(branch)}: what one client can change in a rule that "
                "looks at single updates is not known; leave one of the two out"
            )
    if privacy.kind == "distributed" and federated.secure.kind not in ("none", "shares"):
        raise UsageError(
            f"{kind} with secure.kind = {federated.secure.kind!r}, whose sum is approximate and no "
            "longer on the grid of the noise: use shares"
        )


def _without_averages(config: Config) -> None:
    """Modes in which no updates are averaged have no use for what is done with updates."""
    federated = config.federated
    if federated.mode in ("shards", "scatter"):
        return
    why = {
        "cyclic": "in which the model moves from client to client",
        "encrypted": "in which all rows train one model",
    }[federated.mode]
    for branch, prefix in _steps(federated).items():
        if branch != type(branch)():
            raise UsageError(
                f"{prefix}.{_changed(branch)} with mode = {federated.mode!r}, {why}: leave it out"
            )
    if federated.dropout:
        raise UsageError(
            f"dropout = {federated.dropout:g} with mode = {federated.mode!r}, {why}: leave it out"
        )
    if config.attack != type(config.attack)():
        raise UsageError(f"an attack with mode = {federated.mode!r}, {why}: leave it out")


def _examined(config: Config) -> None:
    """What looks at single updates needs them as they are."""
    federated, robust, data = config.federated, config.federated.robust, config.data
    if robust.kind == "none" and not federated.detect.score:
        return
    what = "detect.score" if robust.kind == "none" else f"robust.kind = {robust.kind!r}"
    if federated.secure.kind != "none":
        raise UsageError(
            f"{what} with secure.kind = {federated.secure.kind!r}: it has to look at every update, "
            "and secure aggregation shows the owner their sum alone; leave one of the two out"
        )
    if federated.strategy.kind == "scaffold":
        raise UsageError(
            f"{what} with strategy.kind = 'scaffold': the clients' control variates would go into "
            "the mean unseen; take another strategy"
        )
    if federated.strategy.kind == "fednova" and robust.kind not in ("none", *WEIGHTED):
        raise UsageError(
            f"{what} with strategy.kind = 'fednova', which works by clients' weights that the "
            f"rule does not have; take one of {', '.join(WEIGHTED)}, or another strategy"
        )
    if not data.path and data.partition != "natural":
        robust.require_clients(cohort_size(data.clients, federated.fraction))


def _root_set(config: Config) -> None:
    """A root set that nothing needs."""
    federated = config.federated
    if federated.root_rows != type(federated).root_rows and not federated.needs_root:
        raise UsageError(
            f"root_rows = {federated.root_rows}, but nothing needs a root set: set robust.kind = "
            "'fltrust' or detect.root_loss, or leave it out"
        )


def _colluding(config: Config) -> None:
    """Colluding attackers are simulated by the owner, which has to see all updates for it."""
    attack, federated = config.attack.kind, config.federated
    if attack not in COLLUDING:
        return
    if federated.secure.kind != "none":
        raise UsageError(
            f"attack.kind = {attack!r} is crafted from all honest updates, which "
            f"secure.kind = {federated.secure.kind!r} hides: choose another attack, or secure.kind "
            "= 'none'"
        )
    if federated.privacy.kind in ("central", "distributed"):
        raise UsageError(
            f"attack.kind = {attack!r} puts what honest clients have sent into other updates after "
            f"they were clipped, so that the epsilon of privacy.kind = {federated.privacy.kind!r} "
            "would be wrong: choose another attack"
        )
    if federated.strategy.kind == "scaffold":
        raise UsageError(
            f"attack.kind = {attack!r} with strategy.kind = 'scaffold', whose clients send more "
            "than an update: nothing is crafted in place of the rest; choose another attack"
        )


def _secure(config: Config) -> None:
    """Each kind of secure aggregation has options of its own."""
    secure = config.federated.secure
    options = {
        "shares": ("threshold", "neighbours"),
        "ckks": ("key_holders", "adder", "poly_modulus_degree", "scale_bits"),
    }
    why = {"shares": "which deals no shares", "ckks": "which encrypts nothing"}
    for kind, names in options.items():
        for name in names:
            value = getattr(secure, name)
            if secure.kind != kind and value != getattr(type(secure)(), name):
                raise UsageError(
                    f"secure.{name} = {value!r} with secure.kind = {secure.kind!r}, {why[kind]}: "
                    "leave it out"
                )


def _variates(config: Config) -> None:
    federated = config.federated
    if federated.strategy.kind == "scaffold" and federated.momentum:
        raise UsageError(
            f"momentum = {federated.momentum:g} with strategy scaffold, which takes what a client "
            "moved for the sum of its gradients: leave one of the two out"
        )


def _steps(federated: FederatedConfig) -> dict[Any, str]:
    """The branches of what is done with updates, and how TOML names them."""
    names = ("strategy", "secure", "privacy", "robust", "detect")
    return {getattr(federated, name): f"federated.{name}" for name in names}


def _changed(branch: Any) -> str:
    """The first option of a branch that has not its default."""
    default = type(branch)()
    return next(
        f.name for f in fields(branch) if getattr(branch, f.name) != getattr(default, f.name)
    )
