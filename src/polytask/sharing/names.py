"""The encoders, sharing architectures and attachments by name; a module is imported when its name is looked up."""

from polytask.core.catalogue import Catalogue

ENCODERS = Catalogue(
    "encoder",
    {
        "mlp": "polytask.sharing.encoders.mlp:MLP",
        "conv": "polytask.sharing.encoders.conv:Conv",
        "segnet": "polytask.sharing.encoders.segnet:SegNet",
        "pyramid": "polytask.sharing.encoders.pyramid:Pyramid",
        "tabular": "polytask.sharing.encoders.tabular:Tabular",
        "columns": "polytask.sharing.encoders.columns:Columns",
        "patches": "polytask.sharing.encoders.patches:Patches",
        "blocks": "polytask.sharing.encoders.blocks:Blocks",
        "sequence": "polytask.sharing.encoders.sequence:Sequence",
        "transformer": "polytask.sharing.encoders.transformer:Transformer",
    },
)

SHARING = Catalogue(
    "sharing architecture",
    {
        "hard": "polytask.sharing.hard:Hard",
        "mmoe": "polytask.sharing.mmoe:MMoE",
        "cgc": "polytask.sharing.cgc:CGC",
        "ple": "polytask.sharing.ple:PLE",
        "dselect_k": "polytask.sharing.dselect_k:DSelectK",
        "adatt": "polytask.sharing.adatt:AdaTT",
        "home": "polytask.sharing.home:HoME",
        "stem": "polytask.sharing.stem:STEM",
        "cross_stitch": "polytask.sharing.cross_stitch:CrossStitch",
        "nddr": "polytask.sharing.nddr:NDDR",
        "sluice": "polytask.sharing.sluice:Sluice",
        "esmm": "polytask.sharing.esmm:ESMM",
        "aitm": "polytask.sharing.aitm:AITM",
        "pepnet": "polytask.sharing.pepnet:PEPNet",
        "dtrn": "polytask.sharing.dtrn:DTRN",
        "apem": "polytask.sharing.apem:APEM",
        "m2trec": "polytask.sharing.m2trec:M2TRec",
        "task_tokens": "polytask.sharing.task_tokens:TaskTokens",
        "safe": "polytask.sharing.safe:Safe",
        "mtan": "polytask.sharing.dense.mtan:MTAN",
        "pad": "polytask.sharing.dense.pad:PAD",
        "medusa": "polytask.sharing.dense.medusa:Medusa",
        "task_expert": "polytask.sharing.dense.task_expert:TaskExpert",
        "m3vit": "polytask.sharing.dense.m3vit:M3ViT",
        "mod_squad": "polytask.sharing.mod_squad:ModSquad",
        "film": "polytask.sharing.film:Film",
        "task_embedding": "polytask.sharing.task_embedding:TaskEmbedding",
        "yolor": "polytask.sharing.yolor:Yolor",
        "channel_masks": "polytask.sharing.channel_masks:ChannelMasks",
        "prefix": "polytask.sharing.prefix:Prefix",
        "modality_masks": "polytask.sharing.modality_masks:ModalityMasks",
        "sequential_state": "polytask.sharing.sequential_state:SequentialState",
        "layer_gates": "polytask.sharing.layer_gates:LayerGates",
        "layer_groups": "polytask.sharing.layer_groups:LayerGroups",
        "slimmable": "polytask.sharing.slimmable:Slimmable",
        "hmtl": "polytask.sharing.hmtl:HMTL",
        "factorised": "polytask.sharing.factorised:Factorised",
        "level_attention": "polytask.sharing.level_attention:LevelAttention",
        "task_moe": "polytask.sharing.task_moe:TaskMoE",
        "task_aware_moe": "polytask.sharing.task_aware_moe:TaskAwareMoE",
        "dmoerm": "polytask.sharing.dmoerm:DMoERM",
        "evomoe": "polytask.sharing.evomoe:EvoMoE",
        "domain_experts": "polytask.sharing.domain_experts:DomainExperts",
        "single": "polytask.sharing.single:Single",
    },
)

ATTACHMENTS = Catalogue(
    "attachment",
    {
        "rotograd": "polytask.sharing.attachments.rotograd:RotoGrad",
        "rep_mtl": "polytask.sharing.attachments.rep_mtl:RepMTL",
        "modality_calibration": "polytask.sharing.attachments.modality_calibration:ModalityCalibration",
        "covariance_alignment": "polytask.sharing.attachments.covariance_alignment:CovarianceAlignment",
    },
)
