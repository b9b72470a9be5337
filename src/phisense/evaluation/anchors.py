"""What others have published of comparable models, to stand beside ours and to be marked as theirs.

    ANCHORS[model][task] = {"figure": a figure of that task, "value": on its scale, "source": ..., "note": what was otherwise}

Nobody here measured any of these. A figure belongs to its split and its way of asking, which the note says where it is not the task's own.
"""

from __future__ import annotations

from typing import NotRequired, TypedDict


class Anchor(TypedDict):
    figure: str
    value: float
    source: str
    note: NotRequired[str]


_LLAVA = "Liu et al., Improved Baselines with Visual Instruction Tuning (arXiv:2310.03744), and LLaVA's docs/MODEL_ZOO.md"
_XTUNER = "model card of xtuner/llava-phi-3-mini-hf, Results"
_LLAVA_PHI = "Zhu et al., LLaVA-Phi (arXiv:2401.02330); its row in MoE-LLaVA's table of results (arXiv:2401.15947)"
_PHI = "model card of microsoft/Phi-3.5-vision-instruct, Benchmarks"
_MEAN_F1 = "F1, averaged over random, popular and adversarial"
_TEST_DEV = "test-dev, whose answers are not public; trained on VQAv2's training split"

ANCHORS: dict[str, dict[str, Anchor]] = {
    "LLaVA-1.5-7B": {
        "vqav2": {"figure": "accuracy", "value": 0.785, "source": _LLAVA, "note": _TEST_DEV},
        "gqa": {"figure": "accuracy", "value": 0.620, "source": _LLAVA, "note": "trained on GQA's training split"},
        "textvqa-ocr": {"figure": "accuracy", "value": 0.582, "source": _LLAVA},
        "scienceqa": {"figure": "accuracy", "value": 0.668, "source": _LLAVA},
        "pope": {"figure": "f1", "value": 0.859, "source": _LLAVA, "note": _MEAN_F1},
        "mme": {"figure": "perception", "value": 1510.7, "source": _LLAVA},
        "mmbench": {"figure": "accuracy", "value": 0.643, "source": _LLAVA, "note": "scored by MMBench's server"},
    },
    "LLaVA-Phi-3-mini (xtuner)": {
        "gqa": {"figure": "accuracy", "value": 0.615, "source": _XTUNER},
        "textvqa-ocr": {"figure": "accuracy", "value": 0.578, "source": _XTUNER, "note": "the card does not say whether with OCR tokens"},
        "scienceqa": {"figure": "accuracy", "value": 0.737, "source": _XTUNER, "note": "where LLaVA-1.5-7B has 0.704, not its own 0.668"},
        "pope": {"figure": "f1", "value": 0.873, "source": _XTUNER, "note": _MEAN_F1},
        "mme": {"figure": "perception", "value": 1477.0, "source": _XTUNER, "note": "cognition 313"},
        "mmbench": {"figure": "accuracy", "value": 0.692, "source": _XTUNER, "note": "the test split, scored by MMBench's server"},
    },
    "LLaVA-Phi": {
        "vqav2": {"figure": "accuracy", "value": 0.714, "source": _LLAVA_PHI, "note": "test-dev, whose answers are not public"},
        "textvqa-ocr": {"figure": "accuracy", "value": 0.486, "source": _LLAVA_PHI, "note": "asked as LLaVA-1.5 is"},
        "scienceqa": {"figure": "accuracy", "value": 0.684, "source": _LLAVA_PHI},
        "pope": {"figure": "f1", "value": 0.850, "source": _LLAVA_PHI, "note": _MEAN_F1},
        "mme": {"figure": "perception", "value": 1335.1, "source": _LLAVA_PHI},
        "mmbench": {"figure": "accuracy", "value": 0.598, "source": _LLAVA_PHI, "note": "scored by MMBench's server"},
    },
    "Phi-3.5-vision": {
        "textvqa": {"figure": "accuracy", "value": 0.720, "source": _PHI, "note": "how it was asked is not said"},
        "scienceqa": {"figure": "accuracy", "value": 0.913, "source": _PHI, "note": "img-test"},
        "pope": {"figure": "accuracy", "value": 0.861, "source": _PHI, "note": "the card does not say whether accuracy or F1"},
        "mmbench": {"figure": "accuracy", "value": 0.819, "source": _PHI, "note": "dev-en; whether circular is not said"},
    },
}
