"""Proof that a model looks: the same questions with the real picture, with none, and with another's; scores; a report.

task.py         what a benchmark is                    tasks/        the benchmarks
answers.py      when an answer is right                texts.py      how near a text is to others
answerers.py    who answers: batches, or any engine    journal.py    answers kept, so that a run goes on
run.py          asks and writes                        scores.py, intervals.py    figures, and how sure they are
report.py       the page
"""
