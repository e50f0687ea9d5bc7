"""A ComfyUI custom node without nodes: put this folder under ComfyUI/custom_nodes, and every loader node opens compressed checkpoints too."""

import modelcodec

modelcodec.install()
NODE_CLASS_MAPPINGS: dict[str, type] = {}
