"""The rules that polytask ships: name -> where it is defined. A test checks this table against the files."""

RULES: dict[str, str] = {
    "equal": "polytask.balancing.equal:equal",
    "uncertainty": "polytask.balancing.uncertainty:uncertainty",
    "dwa": "polytask.balancing.dwa:dwa",
    "pcgrad": "polytask.balancing.pcgrad:pcgrad",
    "mgda": "polytask.balancing.mgda:mgda",
    "upgrad": "polytask.balancing.upgrad:upgrad",
}
