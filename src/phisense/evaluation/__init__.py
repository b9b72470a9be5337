"""Proof that a model looks: the same questions with the real picture, with none, and with another's; benchmarks; scores; a report.

task.py         what a benchmark is                    tasks/        the benchmarks
reading.py      their official files                   given.py      answers that somebody else's program wrote
answers.py      when an answer is right                yes_no.py     yes and no in words
texts.py        how near a text is to others           anchors.py    what others have published
answerers.py    who answers: batches, or any engine    journal.py    answers kept, so that a run goes on
run.py          asks and writes                        scores.py    figures; ../intervals.py says how sure they are
report.py       the page
"""
