"""The authors' names of all our parts, as data: one table for each type of module."""

__all__ = ["LAYER_NAMES", "TABLES_OF_NAMES"]

#: one LESA layer: our name -> the authors'
LAYER_NAMES = {
    "local.spatial": "x_transform.0",
    "local.mix": "x_transform.1",
    "local.norm": "bn_x",
    "context.qkv": "qkv_transform",
    "context.norm_qkv": "bn_qkv",
    "context.norm_scores": "bn_similarity",
    "context.norm_out": "bn_output",
    "context.position.table": "relative",
    "context.position.height": "rel_height",
    "context.position.width": "rel_width",
    "gate.reason": "reasoning",
    "gate.project": "projection",
}

_BOX_HEAD_NAMES = {
    "hidden.0": "shared_fcs.0",
    "hidden.2": "shared_fcs.1",
    "classify": "fc_cls",
    "move": "fc_reg",
}

_MASK_HEAD_NAMES = {
    **{f"convs.{i}": f"convs.{i}.conv" for i in range(4)},
    "enlarge": "upsample",
    "draw": "conv_logits",
    "flow": "conv_res.conv",
}

_SEMANTIC_HEAD_NAMES = {
    **{f"laterals.{i}": f"lateral_convs.{i}.conv" for i in range(5)},
    **{f"convs.{i}": f"convs.{i}.conv" for i in range(4)},
    "embed": "conv_embedding.conv",
    "classify": "conv_logits",
}

_DETECTOR_NAMES = {
    "pyramid.backbone": "backbone",
    **{f"pyramid.fpn.inner_blocks.{i}.0": f"neck.lateral_convs.{i}.conv" for i in range(4)},
    **{f"pyramid.fpn.layer_blocks.{i}.0": f"neck.fpn_convs.{i}.conv" for i in range(4)},
    "rpn.head.conv.0.0": "rpn_head.rpn_conv",
    "rpn.head.cls_logits": "rpn_head.rpn_cls",
    "rpn.head.bbox_pred": "rpn_head.rpn_reg",
    "box_head": "roi_head.bbox_head",
    "mask_head": "roi_head.mask_head",
    "semantic_head": "roi_head.semantic_head",
}

#: name of a module's type -> its table of names, eq. (11.1); a module that is not listed has the authors' names already
TABLES_OF_NAMES = {
    "LESA": LAYER_NAMES,
    "BoxHead": _BOX_HEAD_NAMES,
    "MaskHead": _MASK_HEAD_NAMES,
    "SemanticHead": _SEMANTIC_HEAD_NAMES,
    "MaskRCNN": _DETECTOR_NAMES,
}
