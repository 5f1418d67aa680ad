"""The kinds of store: name -> where it is defined. A test checks this table against the files."""

from polytask.core.catalogue import Catalogue

KINDS = Catalogue(
    "kind of store",
    {
        "tall_masks": "polytask.merging.stores.tall_masks:TallMasks",
        "emr": "polytask.merging.stores.emr:Emr",
        "sparse": "polytask.merging.stores.sparse:Sparse",
        "low_rank": "polytask.merging.stores.low_rank:LowRank",
        "seeded": "polytask.merging.stores.seeded:Seeded",
    },
)
