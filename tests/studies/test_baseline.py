"""A baseline is the same network for one task: what is around the encoder stays."""

from tests.training.test_dense import data, recipe

from polytask.recipes.reading import read_recipe
from polytask.recipes.run import make_job
from polytask.studies.baseline import single_task
from polytask.studies.experts import start_of


def test_a_task_alone_has_the_decoder_that_it_has_beside_others() -> None:
    decoder = {"width": 12, "strides": {"depth": 2}, "auxiliary": 0.2}
    values = recipe("mtan", **{"model.decoder": decoder})
    job = make_job(read_recipe(values), data=data())
    beside = job.build().sharing
    for alone in (single_task(job, "depth"), start_of(job)):
        assert alone.model.sharing.kind == "hard"
        sharing = alone.build().sharing
        assert sharing.map_sizes["depth"] == beside.map_sizes["depth"]
        assert sharing.auxiliary == beside.auxiliary
