"""Published results of comparable models, shown beside ours and marked as published.

    PUBLISHED_RESULTS[model][task] = PublishedResult(metric of the task, value on its scale, source,
                                                     note on what differs)

None of these was measured here. A value belongs to its split and its prompt; the note says where
they differ from the task's.
"""

from __future__ import annotations

from typing import NamedTuple


class PublishedResult(NamedTuple):
    """A published value of a metric on the task's scale; `note` says what was measured
    differently.
    """

    figure: str
    value: float
    source: str
    note: str = ""


_LLAVA = (
    "Liu et al., Improved Baselines with Visual Instruction Tuning (arXiv:2310.03744), and LLaVA's"
    " docs/MODEL_ZOO.md"
)
_XTUNER = "model card of xtuner/llava-phi-3-mini-hf, Results"
_LLAVA_PHI = (
    "Zhu et al., LLaVA-Phi (arXiv:2401.02330); its row in MoE-LLaVA's table of results"
    " (arXiv:2401.15947)"
)
_PHI = "model card of microsoft/Phi-3.5-vision-instruct, Benchmarks"
_OCRBENCH = "Liu et al., OCRBench (arXiv:2305.07895), its leaderboard's TextRecognition.csv"
_MEAN_F1 = "F1, averaged over random, popular and adversarial"
_ALL_IMAGES = "with the questions of several images, which are not asked here"
_JUDGED = "how it was judged is not said; the benchmark asks GPT-4"
_NOT_SAID = "how it was asked and read is not said"
_TEST_DEV = "test-dev, whose answers are not public; trained on VQAv2's training split"

PUBLISHED_RESULTS: dict[str, dict[str, PublishedResult]] = {
    "LLaVA-1.5-7B": {
        "vqav2": PublishedResult("accuracy", 0.785, _LLAVA, _TEST_DEV),
        "gqa": PublishedResult("accuracy", 0.620, _LLAVA, "trained on GQA's training split"),
        "textvqa-ocr": PublishedResult("accuracy", 0.582, _LLAVA),
        "scienceqa": PublishedResult("accuracy", 0.668, _LLAVA),
        "pope": PublishedResult("f1", 0.859, _LLAVA, _MEAN_F1),
        "mme": PublishedResult("perception", 1510.7, _LLAVA),
        "mmbench": PublishedResult("accuracy", 0.643, _LLAVA, "scored by MMBench's server"),
        "mmmu": PublishedResult("accuracy", 0.353, _XTUNER, _ALL_IMAGES),
        "mmstar": PublishedResult("accuracy", 0.303, _XTUNER),
        "ai2d": PublishedResult("accuracy", 0.548, _XTUNER, _NOT_SAID),
        "hallusionbench": PublishedResult("a_acc", 0.449, _XTUNER, _JUDGED),
        "ocrbench": PublishedResult("text_recognition", 0.533, _OCRBENCH, "160 of 300"),
    },
    "LLaVA-Phi-3-mini (xtuner)": {
        "gqa": PublishedResult("accuracy", 0.615, _XTUNER),
        "textvqa-ocr": PublishedResult(
            "accuracy", 0.578, _XTUNER, "the card does not say whether with OCR tokens"
        ),
        "scienceqa": PublishedResult(
            "accuracy", 0.737, _XTUNER, "where LLaVA-1.5-7B has 0.704, not its own 0.668"
        ),
        "pope": PublishedResult("f1", 0.873, _XTUNER, _MEAN_F1),
        "mme": PublishedResult("perception", 1477.0, _XTUNER, "cognition 313"),
        "mmbench": PublishedResult(
            "accuracy", 0.692, _XTUNER, "the test split, scored by MMBench's server"
        ),
        "mmmu": PublishedResult("accuracy", 0.414, _XTUNER, _ALL_IMAGES),
        "mmstar": PublishedResult("accuracy", 0.437, _XTUNER),
        "ai2d": PublishedResult("accuracy", 0.693, _XTUNER, _NOT_SAID),
        "hallusionbench": PublishedResult("a_acc", 0.498, _XTUNER, _JUDGED),
    },
    "LLaVA-Phi": {
        "vqav2": PublishedResult(
            "accuracy", 0.714, _LLAVA_PHI, "test-dev, whose answers are not public"
        ),
        "textvqa-ocr": PublishedResult("accuracy", 0.486, _LLAVA_PHI, "asked as LLaVA-1.5 is"),
        "scienceqa": PublishedResult("accuracy", 0.684, _LLAVA_PHI),
        "pope": PublishedResult("f1", 0.850, _LLAVA_PHI, _MEAN_F1),
        "mme": PublishedResult("perception", 1335.1, _LLAVA_PHI),
        "mmbench": PublishedResult("accuracy", 0.598, _LLAVA_PHI, "scored by MMBench's server"),
    },
    "Phi-3.5-vision": {
        "textvqa": PublishedResult("accuracy", 0.720, _PHI, "how it was asked is not said"),
        "scienceqa": PublishedResult("accuracy", 0.913, _PHI, "img-test"),
        "pope": PublishedResult(
            "accuracy", 0.861, _PHI, "the card does not say whether accuracy or F1"
        ),
        "mmbench": PublishedResult("accuracy", 0.819, _PHI, "dev-en; whether circular is not said"),
        "mmmu": PublishedResult("accuracy", 0.430, _PHI, _ALL_IMAGES),
        "ai2d": PublishedResult("accuracy", 0.781, _PHI, _NOT_SAID),
        "chartqa": PublishedResult("relaxed_accuracy", 0.818, _PHI, _NOT_SAID),
    },
}
