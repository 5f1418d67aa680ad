"""The rules, transforms and merge methods that polytask ships: name -> where it is defined.

A test checks these tables against the files.
"""

RULES: dict[str, str] = {
    "equal": "polytask.balancing.equal:equal",
    "uncertainty": "polytask.balancing.uncertainty:uncertainty",
    "dwa": "polytask.balancing.dwa:dwa",
    "pcgrad": "polytask.balancing.pcgrad:pcgrad",
    "mgda": "polytask.balancing.mgda:mgda",
    "upgrad": "polytask.balancing.upgrad:upgrad",
    "static": "polytask.balancing.static:static",
    "random_loss_weighting": "polytask.balancing.random_loss_weighting:random_loss_weighting",
    "geometric_mean": "polytask.balancing.geometric_mean:geometric_mean",
    "imtl_l": "polytask.balancing.imtl_l:imtl_l",
    "mean": "polytask.balancing.mean:mean",
    "random": "polytask.balancing.random:random",
    "imtl_g": "polytask.balancing.imtl_g:imtl_g",
    "gradvac": "polytask.balancing.gradvac:gradvac",
    "cagrad": "polytask.balancing.cagrad:cagrad",
    "nash_mtl": "polytask.balancing.nash_mtl:nash_mtl",
    "aligned_mtl": "polytask.balancing.aligned_mtl:aligned_mtl",
    "dualproj": "polytask.balancing.dualproj:dualproj",
    "fairgrad": "polytask.balancing.fairgrad:fairgrad",
    "config": "polytask.balancing.config:config",
    "krum": "polytask.balancing.krum:krum",
    "smooth_tchebycheff": "polytask.balancing.smooth_tchebycheff:smooth_tchebycheff",
    "gradnorm": "polytask.balancing.gradnorm:gradnorm",
    "famo": "polytask.balancing.famo:famo",
    "focal": "polytask.balancing.focal:focal",
    "data_balanced": "polytask.balancing.data_balanced:data_balanced",
    "convergence_balanced": "polytask.balancing.convergence_balanced:convergence_balanced",
    "coba": "polytask.balancing.coba:coba",
    "constrained": "polytask.balancing.constrained:constrained",
    "go4align": "polytask.balancing.go4align:go4align",
    "graddrop": "polytask.balancing.graddrop:graddrop",
    "trimmed_mean": "polytask.balancing.trimmed_mean:trimmed_mean",
    "sharpness_aware": "polytask.balancing.sharpness_aware:sharpness_aware",
    "maxl": "polytask.balancing.maxl:maxl",
    "auto_lambda": "polytask.balancing.auto_lambda:auto_lambda",
    "and_mask": "polytask.balancing.and_mask:and_mask",
    "rotograd_scaling": "polytask.balancing.rotograd_scaling:rotograd_scaling",
    "gradient_normalization": "polytask.balancing.gradient_normalization:gradient_normalization",
    "svd_reweighting": "polytask.balancing.svd_reweighting:svd_reweighting",
    "linear": "polytask.merging.rules.linear:linear",
    "task_arithmetic": "polytask.merging.rules.task_arithmetic:task_arithmetic",
    "elect": "polytask.merging.rules.elect:elect",
}

TRANSFORMS: dict[str, str] = {
    "trim": "polytask.merging.transforms.trim:trim",
}

METHODS: dict[str, str] = {
    "ties": "polytask.merging.methods.ties:ties",
}
