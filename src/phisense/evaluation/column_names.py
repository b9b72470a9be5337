"""Column names of answer files, as benchmarks and the programs that answer them write them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Names that a benchmark's own file may use for something else (its references, its questions), and
#: names that only model outputs use.
AMBIGUOUS_COLUMNS = _names("answer text caption")
MODEL_COLUMNS = _names("""
    prediction predictions pred preds predict predicted predicted_answer pred_answer
    prediction_text response responses output outputs model_answer model_output model_response
    model_prediction model_pred generated_text generated generation gen generated_answer
    generated_caption completion result reply hyp hypothesis candidate llm_answer answer_text
    raw_output raw_response final_answer filtered_resps resps
""")
ANSWER_COLUMNS = AMBIGUOUS_COLUMNS | MODEL_COLUMNS
#: Names of reference answers in benchmark files: never selected unless the user names them.
REFERENCE_COLUMNS = _names("""
    label labels gt gts gt_answer gt_answers ground_truth target targets reference references
    gold gold_answer correct_answer correct truth expected answers solution
    multiple_choice_answer right_answer
""")
#: Fields of question files: an answer file with two of them is a copy of a question file.
_QUESTION_FIELDS = REFERENCE_COLUMNS | _names("""
    question a b c d e hint image image_path image_source file_name img category l2_category
    choices options split source types isbalanced answer_type question_type question_tokens
    image_classes ocr_tokens subject topic lecture comment
""")
#: Fields of answer files that hold metadata, not answers.
_METADATA_COLUMNS = _names("""
    prompt instruction system_prompt model model_id model_name model_version model_path dataset
    dataset_name data_source benchmark task version run seed temperature top_p max_tokens
    max_new_tokens device host lang language answer_id metadata meta doc usage cost time
    timestamp date datetime created created_at updated_at latency latency_ms duration elapsed
    runtime seconds tokens score reasoning reasoning_content rationale explanation thought
    thoughts thinking cot confidence prob probability logprob condition kind shown finish_reason
    stop_reason status error loss credit right hit match is_correct acc accuracy judge judgement
    judgment verdict evaluation filename file file_path path url coco_url flickr_url image_name
    image_file image_url width height bbox hash sha256 md5 difficulty level grade skill scene
    domain annotator log
""")
_ENDINGS = ("id", "index", "_ms", "_seconds", "_tokens", "_time", "_url", "_path", "_date")
#: Names of columns that may hold the text of the question.
_QUESTION_COLUMNS = _names("question text prompt query question_text")


@lru_cache(maxsize=1 << 12)  # called for every key of every row
def plain_name(name: object) -> str:
    return re.sub(r"[\s-]+", "_", str(name).strip().casefold())


def copies_questions(names: Iterable[str]) -> bool:
    """Whether a file with these columns is a copy of the benchmark's question file."""
    return sum(plain_name(name) in _QUESTION_FIELDS for name in names) >= 2


def may_hold_question(name: str) -> bool:
    return plain_name(name) in _QUESTION_COLUMNS


def is_unrecognized(name: str) -> bool:
    """Whether a column name is unknown here, so that the column may hold anything."""
    plain = plain_name(name)
    known = plain in _QUESTION_FIELDS or plain in ANSWER_COLUMNS or plain in _METADATA_COLUMNS
    return not (known or plain.endswith(_ENDINGS) or plain.startswith("unnamed"))
