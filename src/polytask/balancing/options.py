"""What a balancer can be asked for: the engines, groups and scales, and which rule goes with which."""

from collections.abc import Mapping
from typing import Any

from polytask.balancing.engine import Engine, reads_gradients
from polytask.core.catalogue import Catalogue
from polytask.core.constraints import Choice, check_parameters, parameters_of
from polytask.core.errors import BadValue, Inconsistent
from polytask.core.rules import RuleSpec

ENGINES = Catalogue(
    "engine",
    {
        "auto": "polytask.balancing.auto:AutoEngine",
        "exact": "polytask.balancing.exact:ExactEngine",
        "layerwise": "polytask.balancing.layerwise:LayerwiseEngine",
        "representation": "polytask.balancing.representation:RepresentationEngine",
        "subset": "polytask.balancing.subset:SubsetEngine",
        "interval": "polytask.balancing.interval:IntervalEngine",
    },
)
GROUPS = Choice("all", "layer", "tensor")
SCALES = Choice("published", "sum", "mean", "unit")
GRAMS = Choice("kept", "recomputed", "micro_mean")


def new_engine(given: str | Mapping[str, Any], where: str) -> tuple[str, Engine]:
    """(kind, engine) from a name or {"kind": name, **options}."""
    options = {"kind": given} if isinstance(given, str) else dict(given)
    kind = options.pop("kind", None)
    found = ENGINES.find(kind)
    return str(kind), found(**check_parameters(parameters_of(found.__init__), options, f"{where}, engine {kind!r}"))


def check_engine(spec: RuleSpec, engine: str, where: str) -> None:
    """BadValue for an engine that does not give the rule what it reads."""
    why = None
    if engine not in ("exact", "auto") and (spec.weighs_losses or spec.form == "procedure"):
        why = "exact: the rule " + ("weighs losses, not gradients" if spec.weighs_losses else "is a procedure")
    elif engine not in ("exact", "layerwise", "auto") and (spec.double_sampling or spec.tracker):
        why = "exact: the rule " + ("reads several batches" if spec.double_sampling else "remembers gradients")
    if why is not None:
        raise BadValue("engine", engine, why, where)


def check_options(spec: RuleSpec, groups: str, scale: str, where: str) -> None:
    """BadValue for what the rule that is applied cannot serve."""
    for name, choice, value in (("groups", GROUPS, groups), ("scale", SCALES, scale)):
        if not choice.allows(value):
            raise BadValue(name, value, str(choice), where)
    if spec.form == "procedure":
        if groups != "all" or scale != "published":
            name, value, allowed = ("groups", groups, "all") if groups != "all" else ("scale", scale, "published")
            raise BadValue(name, value, f"{allowed}: the rule is a procedure with a result of its own", where)
    elif spec.weighs_losses:
        if groups != "all":
            raise BadValue("groups", groups, "all: the rule weighs losses, not gradients", where)
        if scale == "unit":
            raise BadValue(
                "scale", scale, "published | sum | mean: the rule sees no gradient whose norm it could set", where
            )


def check_gram(spec: RuleSpec, gram: str, engine: str, groups: str, scale: str, where: str) -> None:
    """BadValue for a way to see a batch in parts that does not serve the rule or its options."""
    if not GRAMS.allows(gram):
        raise BadValue("gram", gram, str(GRAMS), where)
    if gram == "kept":
        return
    if spec.form == "procedure" or spec.double_sampling or (reads_gradients(spec) and not spec.weighs_losses):
        raise BadValue("gram", gram, "kept: the rule reads more of each task than inner products", where)
    if spec.weighs_losses and gram == "micro_mean":
        raise BadValue("gram", gram, "kept | recomputed: the rule weighs losses, and needs no Gram matrix", where)
    if not _takes_parts(engine):
        raise BadValue("engine", engine, f"auto | exact | layerwise, with gram {gram!r}", where)
    if groups != "all":
        raise BadValue("groups", groups, f"all: gram {gram!r} is over all that is shared", where)
    if scale == "unit" and gram == "micro_mean":
        raise BadValue("scale", scale, "published | sum | mean: the norm over the whole batch is not known", where)


def check_parts(spec: RuleSpec, engine: str, gram: str, *, again: bool) -> None:
    """Inconsistent if a step cannot be made of parts; `again` where they are computed again."""
    if spec.form == "procedure" or spec.double_sampling:
        why = "is a procedure" if spec.form == "procedure" else "reads independent batches"
        raise Inconsistent(f"rule {spec.name!r} {why}, and takes no batch in parts")
    if not _takes_parts(engine):
        raise Inconsistent(f"engine {engine!r} takes no batch in parts: use engine 'exact'")
    if again and gram == "kept":
        raise Inconsistent("backward_parts computes the parts again: balancer(..., gram='recomputed' or 'micro_mean')")
    if not again and gram != "kept":
        raise Inconsistent(f"gram {gram!r} computes the parts again: call backward_parts in place of accumulate")


def _takes_parts(engine: str) -> bool:
    return engine in ("auto", "exact", "layerwise")
