"""Where the public data sets of the shipped recipes come from, for the error about a missing file."""

from collections.abc import Iterable
from pathlib import Path

from polytask.core.errors import DataError, nearest_beside

_SENTENCES = "one row a sentence with columns text, label, split"
_MULAN = "the Mulan collection of multi-target regression sets (Spyromitros-Xioufis et al. 2016), mulan.sourceforge.net"
_SCHOOL = (
    "the Inner London Education Authority's exam scores, distributed with the MALSAR package "
    "(columns x0 ... x27, exam_score, school)"
)
_MOVIELENS = "MovieLens 100K of GroupLens, grouplens.org/datasets/movielens/100k (research use)"

ORIGINS: dict[str, str] = {
    "census_income": "the Census-Income (KDD) data set of the UCI machine learning repository, "
    "archive.ics.uci.edu/dataset/117 (CC BY 4.0), with named columns and a split column",
    "tox21": "Tox21 of MoleculeNet, moleculenet.org/datasets-1 (tox21.csv.gz), with a split column",
    "clintox": "ClinTox of MoleculeNet, moleculenet.org/datasets-1 (clintox.csv.gz), with a split column",
    "qm9": "QM9 of MoleculeNet, moleculenet.org/datasets-1 (qm9.csv)",
    "list_attr_celeba": "the attributes of CelebA, mmlab.ie.cuhk.edu.hk/projects/CelebA.html (research use); `polytask "
    "recipes celeba` prints how its files become tables",
    "list_eval_partition": "the split of CelebA, mmlab.ie.cuhk.edu.hk/projects/CelebA.html (research use); `polytask "
    "recipes celeba` prints how its files become tables",
    "mr": f"movie review polarity of Pang and Lee 2005, www.cs.cornell.edu/people/pabo/movie-review-data; {_SENTENCES}",
    "subj": f"subjectivity of Pang and Lee 2004, www.cs.cornell.edu/people/pabo/movie-review-data; {_SENTENCES}",
    "cr": f"customer reviews of Hu and Liu 2004, www.cs.uic.edu/~liub/FBS/sentiment-analysis.html; {_SENTENCES}",
    "trec": f"question types of Li and Roth 2002, cogcomp.seas.upenn.edu/Data/QA/QC; {_SENTENCES}",
    "sst2": f"the Stanford Sentiment Treebank of Socher et al. 2013, nlp.stanford.edu/sentiment; {_SENTENCES}",
    "cola": f"the Corpus of Linguistic Acceptability of Warstadt et al. 2018, nyu-mll.github.io/CoLA; {_SENTENCES}",
    "ml100k_ratings": _MOVIELENS,
    "ml100k_items": _MOVIELENS,
    "ml100k_users": _MOVIELENS,
    "school": _SCHOOL,
    "atp1d": _MULAN,
    "enb": _MULAN,
    "jura": _MULAN,
    "cora": "the Planetoid citation graphs of Yang et al. 2016, github.com/kimiyoung/planetoid",
    "mnist_10k": "MNIST of LeCun et al., as arrays images [N, 28, 28] and labels",
    "cifar10_12k": "CIFAR-10 of Krizhevsky 2009, "
    "www.cs.toronto.edu/~kriz/cifar.html, with columns image_jpeg, label, split",
}


def missing_file(name: str, tried: Iterable[Path]) -> DataError:
    """The error about a file that is not there: where it was looked for, what is near, its public source if known."""
    places = list({path.resolve(): str(path) for path in tried}.values())
    message = f"{name}: no such file (looked for {', '.join(places)})"
    message += nearest_beside(Path(places[0]))
    origin = ORIGINS.get(Path(name).name.split(".")[0].lower())
    if origin is not None:
        message += f"; it is {origin}"
    return DataError(f"{message}; --data-dir (or POLYTASK_DATA) names the folder with the data")
