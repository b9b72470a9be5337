"""Evaluation: run the same questions with the real image, without an image and with another
question's image to show whether the model uses it; benchmarks, scores, a report.

task.py               interface of a benchmark
tasks/                the benchmarks
benchmark_io.py       reads the official benchmark files
benchmark_images.py   unpacks the images inside them
predictions_io.py     reads answers written by other programs
answer_metrics.py     decides whether an answer is correct
document_metrics.py   ANLS and relaxed accuracy
ranked_letters.py     option letters, and mmmu_answers.py answers, as other programs read them
english.py            what the rules know of English
languages.py          what they do with other languages
lmms.py               the configuration for lmms-eval
yes_no.py             parses yes and no from free text
caption_metrics.py    similarity of a text to reference texts
published_results.py  published results of other models
predictors.py         generates answers: batched torch, or any chat engine
journal.py            stores answers on disk, so that an interrupted evaluation resumes
asked.py              the questions as they are put, under each condition
run.py                the evaluation loop
measurement.py        how an evaluation was measured
scores.py             metrics; ../bootstrap.py computes their confidence intervals
results.py            typed results: scores.json
model_facts.py        typed facts about the model
training_facts.py     facts about the training of the model
report.py             reads the report folder
report_writer.py      writes it; page/ renders its page, gallery.py selects what is shown
comparison.py         compares reports
scored_answer.py      a question, its final answer and its score
final_answer.py       the final answer of a text with a reasoning trace
caveats.py            to how many answers a rule does not fully apply
matching.py           matches rows of an answer file with questions
answer_column.py      selects the column of an answer file that holds the answers
column_names.py       headings of answer columns
unnamed_columns.py    columns without a heading
answer_cells.py       reads a column of an answer file
echoes.py             detects texts that repeat the question or prompt
"""
