"""`python -m tierflow.launch script.py`: a script over one worker or several, with the options of `accelerate launch`.

One worker is a process of this machine; several are a group on a Ray cluster, which is started here if none is named.
Each worker's script runs in a process of its own, so that its end, however it comes, is seen, and its output is kept.
"""
